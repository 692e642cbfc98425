"""The vLLM engine, in this process, on CPU and GPU alike."""

from __future__ import annotations

import gc
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from betaflow.data.tokenise import completion_text
from betaflow.errors import UserError
from betaflow.policy.loading import device, load_tokenizer
from betaflow.sampling.engine import Completion, Request, Scored

TOKENS = 4096  # that a step may compute on a CPU, more where a model has more positions


class VLLMEngine:
    """Completes and scores with vLLM, in the precision of training.

    On a GPU it takes half of the memory: Hugging Face's copy is checked against beside it.
    """

    name = "vllm"

    def __init__(
        self, path: str | Path, *, threads: int, precision: Any, trust_remote_code: bool = False
    ) -> None:
        _environment(threads)
        try:
            with _no_search_for_garbage():
                from vllm import LLM
        except ImportError as error:
            raise UserError(
                f"vLLM is not installed here ({error}); install the `cpu` or `gpu` extra, or set "
                "`engine: hf` in params.yaml to sample with transformers"
            ) from error
        self.on_gpu = torch.cuda.is_available()
        self.tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
        whole = {} if self.on_gpu else _whole_prompts(path, precision, trust_remote_code)
        gc.freeze()  # as vLLM does at the end, after five searches of all that is loaded
        with _random_state_kept(), _no_search_for_garbage():
            self.llm = LLM(
                model=str(path),
                tokenizer=str(path),
                dtype=precision,
                max_model_len=-1,  # the model's own, or as much of it as the memory holds
                gpu_memory_utilization=0.5,
                generation_config="vllm",
                use_tqdm_on_load=False,
                enforce_eager=not self.on_gpu,
                disable_log_stats=True,
                enable_prefix_caching=False,  # it would outlive the weights it was made with
                trust_remote_code=trust_remote_code,
                max_num_seqs=256,
                **whole,
            )
        self.max_length = int(self.llm.llm_engine.model_config.max_model_len)

    def load_weights(self, model: nn.Module) -> None:
        """Take over `model`'s weights as they are now, within this process: no file is written.

        Each layer's weights are loaded and processed as at the start and copied to where the
        old ones lay, which a CUDA graph remembers. Extra memory: about one layer, and on a CPU
        its packed copies.
        """
        self.llm.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": _checkpoint(model).items()}
        )
        self.llm.apply_model(_pack_embeddings)

    def generate(self, requests: list[Request]) -> list[Completion]:
        """Draw with a seed a request: the order of the requests does not matter."""
        from vllm import SamplingParams

        eos = self.tokenizer.eos_token_id
        params = [
            SamplingParams(
                temperature=r.temperature,
                seed=r.seed,
                max_tokens=r.max_new_tokens,
                logprobs=0,
                stop_token_ids=[eos],
                detokenize=False,
            )
            for r in requests
        ]
        outputs = self._run([r.prompt_ids for r in requests], params)
        return [
            self._completion(request, output.outputs[0])
            for request, output in zip(requests, outputs, strict=True)
        ]

    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[Scored]:
        """Score from the log-probabilities that vLLM gives for prompt tokens."""
        from vllm import SamplingParams

        params = [
            SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        ] * len(pairs)
        outputs = self._run([context + continuation for context, continuation in pairs], params)
        return [
            _scored(output.prompt_logprobs, context, continuation)
            for output, (context, continuation) in zip(outputs, pairs, strict=True)
        ]

    def _run(self, prompts: list[list[int]], params: list[Any]) -> list[Any]:
        if not prompts:
            return []
        tokens: Any = [{"prompt_token_ids": ids} for ids in prompts]
        # Eager vLLM still compiles how it ranks a token: seconds of C++, on a CPU for nothing.
        eager = nullcontext() if self.on_gpu else torch.compiler.set_stance("force_eager")
        with _random_state_kept(), eager:
            outputs: list[Any] = self.llm.generate(tokens, params, use_tqdm=False)
        return outputs

    def _completion(self, request: Request, output: Any) -> Completion:
        ids = list(output.token_ids)
        text = completion_text(self.tokenizer, request.prompt_ids, ids)
        logprob = sum(step[token].logprob for step, token in zip(output.logprobs, ids, strict=True))
        return Completion(ids, text, output.finish_reason, float(logprob))


def _whole_prompts(path: str | Path, precision: Any, trust_remote_code: bool) -> dict[str, Any]:
    """Options by which a step computes no part of a prompt, and fits the model's longest.

    vLLM cuts the prompt that crosses a step's budget, and sets a seeded draw's generator back after
    each part. A CPU's generator can't be.
    """
    from vllm import EngineArgs

    asked = EngineArgs(model=str(path), dtype=precision, trust_remote_code=trust_remote_code)
    longest = asked.create_model_config().max_model_len
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(TOKENS, longest)}


def _scored(logprobs: list[Any], context: list[int], continuation: list[int]) -> Scored:
    found = [
        step[token] for step, token in zip(logprobs[len(context) :], continuation, strict=True)
    ]
    return Scored(sum(f.logprob for f in found), all(f.rank == 1 for f in found))


def _checkpoint(model: Any) -> dict[str, torch.Tensor]:
    """The weights under the names and in the shapes that `save_pretrained` writes."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    plain = remove_tied_weights_from_state_dict(model.state_dict(), model)
    found: dict[str, torch.Tensor] = revert_weight_conversion(model, plain)
    return found


def _pack_embeddings(model: nn.Module) -> None:
    # On a CPU vLLM multiplies by a packed copy. An output layer that shares the embedding's
    # weight gets none of its own in a reload, so its copy would stay the old one.
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding):
            layer.quant_method.process_weights_after_loading(layer)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    # vLLM seeds every generator of the process as it starts, and on a CPU draws from torch's.
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device()] if device().type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    # Imports and an engine's start make next to none; looking for it makes them a third longer.
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


def _environment(threads: int) -> None:
    # Read by vLLM when it is imported. In this process: no second one to outlive a kill.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # vLLM would pin every process to the same cores; several stages run at once here.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
