// The browser of samples: filters, pages, and word-by-word differences from SFT's completion.
(() => {
  const { data, element, toggles } = betaflow;
  const PAGE = 4; // prompts
  const found = data("samples");
  const place = document.getElementById("browser");
  const control = (name) => document.getElementById(`samples-${name}`);
  const list = control("list");
  let arms = new Set();
  let page = 0;

  for (const [name, values] of [["temperature", found.temperatures], ["domain", found.domains]])
    for (const value of values) control(name).append(element("option", { value }, value));
  if (found.temperatures.includes("1")) control("temperature").value = "1";

  // Prompts at a temperature, each with the completions that pass the filters.
  function matching() {
    const [temperature, domain, verdict] = ["temperature", "domain", "verdict"].map(
      (name) => control(name).value,
    );
    const words = control("search").value.trim().toLowerCase();
    const has = (text) => text.toLowerCase().includes(words);
    const items = [];
    found.prompts.forEach((prompt, number) => {
      if (domain && prompt.domain !== domain) return;
      for (const drawn of prompt.drawn) {
        if (temperature && drawn.temperature !== temperature) continue;
        const [reference, ...others] = drawn.completions.map((one, at) => ({ one, at }));
        const kept = others.filter(
          ({ one, at }) =>
            one &&
            (!arms.size || arms.has(found.arms[at])) &&
            (!verdict || one.verdict === (verdict === "none" ? "" : verdict)) &&
            (!words || has(prompt.text) || has(one.text)),
        );
        if (kept.length) items.push({ prompt, number, drawn, reference: reference.one, kept });
      }
    });
    return items;
  }

  function show() {
    const items = matching();
    const pages = Math.max(1, Math.ceil(items.length / PAGE));
    page = Math.min(page, pages - 1);
    const count = items.reduce((sum, item) => sum + item.kept.length, 0);
    const prompts = new Set(items.map((item) => item.number)).size;
    control("count").textContent = `${count} completions of ${prompts} prompts`;
    control("page").textContent = `Page ${page + 1} of ${pages}`;
    control("previous").disabled = page === 0;
    control("next").disabled = page === pages - 1;
    list.replaceChildren(...items.slice(page * PAGE, (page + 1) * PAGE).map(shown));
  }

  function shown(item) {
    const title = `Prompt ${item.number + 1}: ${item.prompt.domain}, T = ${item.drawn.temperature}`;
    const cards = element("div", { class: "grid" });
    if (item.reference) cards.append(card(found.arms[0], item.reference, null));
    for (const { one, at } of item.kept) cards.append(card(found.arms[at], one, item.reference));
    const prompt = element("pre", { class: "prompt" }, item.prompt.text);
    return element("section", {}, element("h3", {}, title), prompt, cards);
  }

  function card(arm, one, reference) {
    const verdict = reference && one.verdict;
    const told = { won: "won against SFT", lost: "lost to SFT", tie: "tie with SFT" }[verdict];
    const facts = [`${place.dataset.score} ${one.score}`, `${one.tokens} tokens`];
    if (one.cut) facts.push("cut at the limit");
    const title = element("h4", {}, arm, element("small", {}, facts.join(", ")));
    if (told) title.append(element("small", { class: verdict }, told));
    const text = element("pre", {});
    if (reference && control("differences").checked) text.append(...differences(reference.text, one.text));
    else text.textContent = one.text;
    return element("article", { class: reference ? "card" : "card reference" }, title, text);
  }

  // The words of `after`, marked where `before` lacks them, and the lost ones: by the longest
  // common subsequence of words.
  function differences(before, after) {
    const [a, b] = [before, after].map((text) => text.match(/\S+\s*|\s+/g) ?? []);
    const same = (i, j) => a[i].trim() === b[j].trim();
    const width = b.length + 1;
    const common = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        common[i * width + j] = same(i, j)
          ? common[(i + 1) * width + j + 1] + 1
          : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    const parts = [];
    const put = (kind, word) => {
      if (parts.at(-1)?.kind === kind) parts.at(-1).text += word;
      else parts.push({ kind, text: word });
    };
    let [i, j] = [0, 0];
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && same(i, j)) put("", b[(i++, j++)]);
      else if (i < a.length && (j === b.length || common[(i + 1) * width + j] >= common[i * width + j + 1]))
        put("del", a[i++]);
      else put("ins", b[j++]);
    }
    return parts.map(({ kind, text }) => (kind ? element(kind, {}, text) : text));
  }

  const again = () => {
    page = 0;
    show();
  };
  toggles(control("arms"), found.arms.slice(1).map((name) => ({ name })), (pressed) => {
    arms = pressed;
    again();
  });
  for (const name of ["temperature", "domain", "verdict", "differences"])
    control(name).addEventListener("change", again);
  control("search").addEventListener("input", again);
  const turn = (by) => () => {
    page += by;
    show();
    list.querySelector("h3")?.scrollIntoView({ block: "nearest" });
  };
  control("previous").addEventListener("click", turn(-1));
  control("next").addEventListener("click", turn(1));
  show();
  place.hidden = false;
  document.getElementById("samples-static").hidden = true;
})();
