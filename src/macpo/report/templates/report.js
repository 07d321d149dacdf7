"use strict";
// All that a model or a data set wrote enters the page as text: `textContent`, never as markup.

function make(tag, css, text) {
  const element = document.createElement(tag);
  if (css) element.className = css;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Light and dark: as the system has it, until somebody chooses.
(function () {
  const root = document.documentElement, button = document.getElementById("theme");
  const remember = (value) => { try { localStorage.setItem("macpo-theme", value); } catch (error) { /* files may have no storage */ } };
  const recall = () => { try { return localStorage.getItem("macpo-theme"); } catch (error) { return null; } };
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  const known = recall();
  if (known === "light" || known === "dark") root.dataset.theme = known;
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; remember(root.dataset.theme); label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
})();

// What stands under the pointer: the text of `data-tip`.
(function () {
  const tip = make("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const show = (event) => {
    const target = event.target.closest ? event.target.closest("[data-tip]") : null;
    tip.hidden = !target;
    if (!target) return;
    tip.textContent = target.dataset.tip;
    const box = tip.getBoundingClientRect();
    const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
    const y = event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18;
    tip.style.left = `${Math.max(4, x)}px`;
    tip.style.top = `${Math.max(4, y)}px`;
  };
  for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);
})();

// Transcripts: one order at a time, searched, a few to a page.
(function () {
  const source = document.getElementById("transcripts-data"), home = document.getElementById("transcript-list");
  if (!source || !home) return;
  const data = JSON.parse(source.textContent), PAGE = 5;
  const search = document.getElementById("transcript-search"), count = document.getElementById("transcript-count");
  const whose = document.getElementById("transcript-agent"), more = document.getElementById("transcript-more");
  const orders = [...document.querySelectorAll("[data-order]")];
  let order = "random", shown = PAGE;

  function marked(text, words) {
    const place = make("div", "text");
    if (!text) { place.append(make("em", "soft", "(empty)")); return place; }
    if (!words) { place.textContent = text; return place; }
    const lower = text.toLowerCase();
    if (lower.length !== text.length) { place.textContent = text; return place; }
    let at = 0;
    for (let found = lower.indexOf(words); found >= 0; found = lower.indexOf(words, at)) {
      place.append(text.slice(at, found), make("mark", "", text.slice(found, found + words.length)));
      at = found + words.length;
    }
    place.append(text.slice(at));
    return place;
  }

  function card(entry, words) {
    const article = make("article", "card pair"), prompt = make("div", "prompt");
    for (const [role, text] of entry.messages) {
      const turn = make("div", "turn");
      turn.append(make("b", "", role), marked(text, words));
      prompt.append(turn);
    }
    const answers = make("div", "answers");
    for (const answer of entry.answers) {
      if (whose.value && answer.agent !== whose.value) continue;
      const box = make("div", `answer ${data.colours[answer.agent]}`);
      const marks = [...answer.values, ...(answer.finished ? [] : ["did not end by itself"]),
        ...(answer.cut ? [`${answer.cut} more characters`] : [])];
      box.append(make("div", "who", `${answer.agent}, ${answer.round ? `round ${answer.round}` : "before"}`), marked(answer.text, words));
      if (marks.length) box.append(make("div", "marks", marks.join(" · ")));
      answers.append(box);
    }
    article.append(prompt, answers);
    return article;
  }

  function matches(entry, words) {
    return !words || entry.messages.some((m) => m[1].toLowerCase().includes(words)) ||
      entry.answers.some((a) => (!whose.value || a.agent === whose.value) && a.text.toLowerCase().includes(words));
  }

  function draw() {
    const words = search.value.trim().toLowerCase();
    const found = data.orders[order].map((place) => data.shown[place]).filter((entry) => matches(entry, words));
    home.replaceChildren(...found.slice(0, shown).map((entry) => card(entry, words)));
    count.textContent = `${Math.min(shown, found.length)} of ${found.length}`;
    more.hidden = shown >= found.length;
    for (const button of orders) button.setAttribute("aria-pressed", String(button.dataset.order === order));
  }

  for (const button of orders) button.addEventListener("click", () => { order = button.dataset.order; shown = PAGE; draw(); });
  search.addEventListener("input", () => { shown = PAGE; draw(); });
  whose.addEventListener("change", draw);
  more.addEventListener("click", () => { shown += 2 * PAGE; draw(); });
  document.getElementById("transcript-tools").hidden = false;
  draw();
})();
