"""Make a model of random weights, of any shape, with a tokenizer of the pairs' own text.

    .venv/bin/python benchmarks/make_model.py --pairs ../shared/data/hh-harmless.jsonl.gz \\
        --vocabulary 32000 --width 256 --layers 4 --heads 4 --out /tmp/llama-32k

Speed and memory depend on the shape, not on what the weights have learnt. The projection has the
vocabulary asked for, also where the text gives the tokenizer fewer tokens. Weights are drawn with
a standard deviation of 1/sqrt(width), at which logits have one of about 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from _pairs import read_pairs
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from betaflow.policy.loading import save_model
from betaflow.policy.scratch import train_tokenizer

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


def main() -> None:
    given = arguments()
    pairs, _ = read_pairs(given.pairs)
    texts = [pair["prompt"] + pair[side] for pair in pairs for side in ("chosen", "rejected")]
    tokenizer = train_tokenizer(texts, given.vocabulary)
    if len(tokenizer) < given.vocabulary:
        print(
            f"the text gives the tokenizer {len(tokenizer)} tokens; the model's projection has the "
            f"{given.vocabulary} asked for",
            file=sys.stderr,
        )
    make_config, make = FAMILIES[given.family]
    torch.manual_seed(0)
    model = make(
        make_config(
            vocab_size=given.vocabulary,
            hidden_size=given.width,
            intermediate_size=given.intermediate or 3 * given.width,
            num_hidden_layers=given.layers,
            num_attention_heads=given.heads,
            num_key_value_heads=given.kv_heads or given.heads,
            max_position_embeddings=4096,
            initializer_range=given.width**-0.5,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    ids = torch.tensor([tokenizer(texts[0]).input_ids[:64]])
    with torch.no_grad():
        spread = float(model(input_ids=ids).logits.std())
    save_model(model, tokenizer, given.out)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{given.out}: {given.family}, {millions:.1f} M parameters, "
        f"standard deviation of the logits {spread:.2f}",
        file=sys.stderr,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, required=True, help="text for the tokenizer")
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--kv-heads", type=int, help="as many as --heads unless given")
    parser.add_argument("--intermediate", type=int, help="3 x width unless given")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="llama")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
