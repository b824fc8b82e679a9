// Sorting of the table and tooltips of the plot. Without this script both are still complete:
// the table keeps its order, and every point is a link to its row with a native tooltip.
for (const table of document.querySelectorAll("[data-sortable]")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      head.parentNode.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const cell = (row) => row.cells[column];
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [cell(a).dataset.sort, cell(b).dataset.sort];
        if (x === undefined && y === undefined) {
          const order = cell(a).textContent.localeCompare(cell(b).textContent);
          return down ? -order : order;
        }
        if (x === undefined || y === undefined) return x === undefined ? 1 : -1; // unmeasured last, both ways
        return down ? y - x : x - y;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
for (const plot of document.querySelectorAll("[data-plot]")) {
  const tip = plot.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  let shown = null;
  const hide = () => {
    if (shown) shown.classList.remove("on");
    tip.hidden = true;
    shown = null;
  };
  const show = (point) => {
    hide();
    shown = point;
    point.classList.add("on");
    tip.textContent = point.dataset.words;
    tip.hidden = false;
    const [frame, mark] = [plot.getBoundingClientRect(), point.querySelector(".hit").getBoundingClientRect()];
    const left = mark.left - frame.left + mark.width / 2 - tip.offsetWidth / 2;
    tip.style.left = Math.max(0, Math.min(left, frame.width - tip.offsetWidth)) + "px";
    const below = mark.bottom - frame.top + 6;
    const above = mark.top - frame.top - tip.offsetHeight - 6;
    tip.style.top = (below + tip.offsetHeight <= frame.height ? below : above) + "px";
  };
  for (const point of plot.querySelectorAll(".pt")) {
    const title = point.querySelector("title");
    point.dataset.words = title.textContent;
    point.setAttribute("aria-label", title.textContent);
    title.remove();
    point.addEventListener("focus", () => show(point));
    point.addEventListener("blur", hide);
  }
  const nearest = (event) => {
    let [best, least] = [null, 28];
    for (const hit of plot.querySelectorAll(".hit")) {
      const box = hit.getBoundingClientRect();
      if (!box.width) continue;
      const away = Math.hypot(event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2);
      if (away <= least) [best, least] = [hit.parentNode, away];
    }
    return best;
  };
  const follow = (event) => {
    const point = nearest(event);
    if (point && point !== shown) show(point);
    if (!point) hide();
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  plot.addEventListener("click", (event) => {
    if (!event.detail) return; // Enter on a focused point follows its link to the table
    event.preventDefault();
    follow(event);
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
}
