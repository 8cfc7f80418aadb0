"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll("article")].map((node, index) => ({
    node, example: data.examples[index], now: node.querySelector(".now"), cursor: node.querySelector(".cursor"),
    cells: [...node.querySelectorAll(".answer td")],
  }));
  const steps = data.chart.length;
  const value = (text, position) => text.charCodeAt(position) - data.first;
  let step = steps - 1, timer = null, solution = false;

  const percent = (share) => Math.round(100 * share) + "%";
  const toFind = (example) => example.kind.split("f").length - 1;

  function state(example, position) {
    const { answers, labels, kind } = example;
    const token = value(solution ? labels : answers[step], position);
    return {
      token, kind: kind[position], right: token === value(labels, position),
      changed: !solution && step > 0 && answers[step][position] !== answers[step - 1][position],
      sure: solution ? 0 : value(example.sure[step], position) / data.levels,
    };
  }

  function drawCard({ example, cells, now, cursor }) {
    cells.forEach((cell, position) => {
      const { token, kind, right, changed, sure } = state(example, position);
      if (kind === "u") return;
      const classes = [!right && "w", kind === "g" && "g", right && kind === "f" && "r", changed && "c",
        data.painted[token] && "t" + token];
      cell.className = classes.filter(Boolean).join(" ");
      cell.style.setProperty("--p", sure.toFixed(2));
      cell.textContent = data.symbols[token];
    });
    cursor.setAttribute("transform", `translate(${data.chart[step]})`);
    now.textContent = solution ? "the solution" :
      `${example.found[step]} of ${toFind(example)} found · ${example.wrong[step]} wrong · halt ${percent(example.halt[step])}`;
  }

  function draw() {
    cards.forEach(drawCard);
    const right = cards.filter(({ example }) => example.wrong[step] === 0).length;
    find("step").value = step + 1;
    find("where").textContent = `step ${step + 1} of ${steps} · ${right} of ${cards.length} boards right`;
    find("back").disabled = step === 0;
    find("on").disabled = step === steps - 1;
  }

  function go(wanted) {
    step = Math.min(steps - 1, Math.max(0, wanted));
    draw();
  }

  function play(on) {
    clearInterval(timer);
    timer = null;
    if (on) {
      if (step === steps - 1) go(0);
      timer = setInterval(() => {
        go(step + 1);
        if (step === steps - 1) play(false);
      }, 700);
    }
    find("play").textContent = timer === null ? "Play" : "Pause";
  }

  function showSolution() {
    solution = !solution;
    find("solution").setAttribute("aria-pressed", solution);
    draw();
  }

  function walk(by) {
    play(false);
    go(step + by);
  }

  find("back").addEventListener("click", () => walk(-1));
  find("on").addEventListener("click", () => walk(1));
  find("play").addEventListener("click", () => play(timer === null));
  find("solution").addEventListener("click", showSolution);
  find("step").addEventListener("input", (event) => walk(Number(event.target.value) - 1 - step));

  const filters = [...document.querySelectorAll("[data-show]")];
  filters.forEach((button) => button.addEventListener("click", () => {
    filters.forEach((other) => other.setAttribute("aria-pressed", other === button));
    cards.forEach(({ node }) => { node.hidden = !["all", node.dataset.solved].includes(button.dataset.show); });
  }));

  const dark = () => getComputedStyle(document.documentElement).colorScheme === "dark";
  const nameTheme = () => { find("theme").textContent = dark() ? "Light" : "Dark"; };
  find("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    nameTheme();
  });

  const keys = {
    ArrowLeft: () => walk(-1), ArrowRight: () => walk(1), Home: () => walk(-steps), End: () => walk(steps),
    " ": () => play(timer === null), s: showSolution,
  };
  document.addEventListener("keydown", (event) => {
    const native = event.target.matches("input") ? event.key !== " " && event.key !== "s" :
      event.target.matches("button") && event.key === " ";
    if (native || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });

  // One listener for all cells: what a cell says in numbers, for pointers and for fingers.
  cards.forEach((card) => card.node.querySelector(".answer").addEventListener("pointerover", (event) => {
    const position = card.cells.indexOf(event.target.closest("td"));
    if (position < 0 || card.example.kind[position] === "u") return;
    const { token, kind, right, sure } = state(card.example, position);
    const where = `row ${Math.floor(position / card.example.columns) + 1}, column ${position % card.example.columns + 1}`;
    const shown = data.symbols[token] || "empty", wanted = data.symbols[value(card.example.labels, position)] || "empty";
    const verdict = (kind === "g" ? "given, " : "") + (right ? "right" : `wrong, should be ${wanted}`);
    card.now.textContent = `${where}: ${shown}` + (solution ? "" : ` · ${verdict} · ${percent(sure)} sure`);
  }));
  cards.forEach((card) => card.node.querySelector(".answer").addEventListener("pointerleave", () => drawCard(card)));

  find("controls").hidden = false;
  nameTheme();
  draw();
})();
