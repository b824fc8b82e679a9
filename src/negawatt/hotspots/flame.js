// Names cut to fit, tooltips, and a look closer at one part. Without this script the graph is complete:
// wide parts carry their names, and every part has a native tooltip.
for (const plot of document.querySelectorAll("[data-flame]")) {
  const flame = plot.querySelector(".flame");
  const back = document.querySelector(".zoom button");
  const percent = (frame, name) => parseFloat(frame.getAttribute(name));
  const frames = [...flame.querySelectorAll(".frame")].map((shape) => ({
    shape,
    text: shape.querySelector("text"),
    name: shape.dataset.name,
    x: percent(shape, "x"),
    width: percent(shape, "width"),
    y: percent(shape, "y"),
  }));
  const letter = 7.1;
  const label = () => {
    const whole = flame.getBoundingClientRect().width;
    for (const frame of frames) {
      const room = Math.floor(((whole * percent(frame.shape, "width")) / 100 - 12) / letter);
      frame.text.textContent =
        room < 3 ? "" : frame.name.length <= room ? frame.name : frame.name.slice(0, room - 1) + "…";
    }
  };
  let chosen = frames[0];
  const look = (at) => {
    chosen = at;
    const end = at.x + at.width + 1e-6;
    for (const frame of frames) {
      const above = frame.y < at.y && frame.x <= at.x + 1e-6 && frame.x + frame.width >= end - 2e-6;
      const inside = frame.y >= at.y && frame.x >= at.x - 1e-6 && frame.x + frame.width <= end;
      frame.shape.classList.toggle("above", above);
      frame.shape.classList.toggle("gone", !above && !inside);
      frame.shape.setAttribute("x", above ? "0%" : ((frame.x - at.x) / at.width) * 100 + "%");
      frame.shape.setAttribute("width", above ? "100%" : (frame.width / at.width) * 100 + "%");
    }
    back.hidden = at === frames[0];
    label();
  };
  const tip = plot.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  let shown = null;
  const hide = () => {
    if (shown) shown.classList.remove("on");
    tip.hidden = true;
    shown = null;
  };
  const show = (shape) => {
    hide();
    shown = shape;
    shape.classList.add("on");
    tip.textContent = shape.dataset.words;
    tip.hidden = false;
    const [frame, mark] = [plot.getBoundingClientRect(), shape.getBoundingClientRect()];
    const left = mark.left - frame.left + mark.width / 2 - tip.offsetWidth / 2;
    tip.style.left = Math.max(0, Math.min(left, frame.width - tip.offsetWidth)) + "px";
    const above = mark.top - frame.top - tip.offsetHeight - 6;
    tip.style.top = (above >= 0 ? above : mark.bottom - frame.top + 6) + "px";
  };
  for (const frame of frames) {
    const title = frame.shape.querySelector("title");
    frame.shape.dataset.words = title.textContent;
    frame.shape.setAttribute("aria-label", title.textContent);
    frame.shape.setAttribute("tabindex", "0");
    frame.shape.setAttribute("role", "button");
    title.remove();
    frame.shape.addEventListener("pointerenter", () => show(frame.shape));
    frame.shape.addEventListener("focus", () => show(frame.shape));
    frame.shape.addEventListener("blur", hide);
    const choose = () => {
      look(frame);
      show(frame.shape);
    };
    frame.shape.addEventListener("click", choose);
    frame.shape.addEventListener("keydown", (event) => event.key === "Enter" && choose());
  }
  flame.setAttribute("role", "group");
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  back.addEventListener("click", () => look(frames[0]));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    hide();
    look(frames[0]);
  });
  new ResizeObserver(label).observe(flame);
  label();
}
