"use strict";
(() => {
  const root = document.documentElement;
  const themes = ["", "light", "dark"];
  const theme = document.getElementById("theme");
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "") + 1) % themes.length];
    if (next) root.dataset.theme = next; else delete root.dataset.theme;
    theme.textContent = "theme: " + (next || "as the system");
  });
  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      getSelection().selectAllChildren(code);
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "copied";
      } catch {
        button.textContent = "selected";
      }
    });
  }
  const map = document.getElementById("map");
  if (!map) return;
  for (const choice of map.querySelectorAll("input[name=by]"))
    choice.addEventListener("change", () => { map.dataset.by = choice.value; });
  const status = document.getElementById("cell");
  const rows = [...map.querySelectorAll("tbody tr")].map((row) => [...row.cells].slice(1));
  const heads = [...map.querySelectorAll("thead th")].slice(1).map((head) => head.textContent);
  let current = null;
  const choose = (cell, focus) => {
    if (current) current.tabIndex = -1;
    current = cell;
    cell.tabIndex = 0;
    if (!focus) return;
    cell.focus();
    const row = cell.parentElement;
    status.textContent = [row.cells[0].textContent, heads[cell.cellIndex - 1], cell.dataset.says].join(" | ");
  };
  const step = (cell, down, right) => {
    let y = cell.parentElement.sectionRowIndex, x = cell.cellIndex - 1;
    do { y += down; x += right; } while (rows[y] && rows[y][x] && !rows[y][x].dataset.says);
    if (rows[y] && rows[y][x]) choose(rows[y][x], true);
  };
  const moves = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
  map.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move || !event.target.dataset.says) return;
    event.preventDefault();
    step(event.target, ...move);
  });
  map.addEventListener("click", (event) => {
    if (event.target.dataset.says) choose(event.target, true);
  });
  const first = rows.flat().find((cell) => cell.dataset.says);
  if (first) choose(first, false);
})();
