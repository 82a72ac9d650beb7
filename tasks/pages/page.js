"use strict";
// Moves the cursor of each timeline over its frames, and says what is true and predicted there.
for (const view of document.querySelectorAll("[data-timeline]")) {
  const input = view.querySelector("input[type=range]");
  const picture = view.querySelector(".stage img");
  const readout = view.querySelector("output");
  const frames = [...view.querySelectorAll(".strip button")];
  const rows = [...view.querySelectorAll(".track")];
  const tracks = rows.map((row) => JSON.parse(row.dataset.track));
  const duration = Number(view.dataset.duration);
  const steps = Number(input.max);
  const said = (second) => (duration < 120 ? second.toFixed(2) + " s"
    : Math.floor(second / 60) + ":" + String(Math.floor(second % 60)).padStart(2, "0"));

  const show = () => {
    const place = Number(input.value);
    const second = (duration * place) / steps;
    view.style.setProperty("--at", (100 * place) / steps + "%");
    let near = 0;
    frames.forEach((frame, i) => {
      if (Number(frame.dataset.second) <= second + 1e-6) near = i;
    });
    frames.forEach((frame, i) => frame.setAttribute("aria-pressed", String(i === near)));
    if (picture && frames[near]) {
      picture.src = frames[near].querySelector("img").src;
      picture.alt = "Frame at " + said(Number(frames[near].dataset.second));
    }
    const truth = [];
    const found = [];
    rows.forEach((row, i) => {
      const score = tracks[i].scores[place];
      const on = tracks[i].spans.some(([start, end]) => start <= second && second < end);
      row.classList.toggle("on", on);
      row.querySelector(".value").textContent = score + " %";
      if (on) truth.push(row.dataset.name);
      if (score >= 50) found.push(row.dataset.name + " " + score + " %");
    });
    const text = said(second) + " · truth: " + (truth.join(", ") || "nothing")
      + " · predicted: " + (found.join(", ") || "nothing");
    readout.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };

  input.addEventListener("input", show);
  frames.forEach((frame) => frame.addEventListener("click", () => {
    input.value = String(Math.round((steps * Number(frame.dataset.second)) / duration));
    show();
    input.focus();
  }));
  for (const lanes of view.querySelectorAll(".lane")) {
    lanes.addEventListener("pointerdown", (event) => {
      const box = lanes.getBoundingClientRect();
      input.value = String(Math.round((steps * (event.clientX - box.left)) / box.width));
      show();
    });
  }
  show();
}

// Marks the section that is read in the navigation.
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const a of links.values()) a.removeAttribute("aria-current");
    const link = links.get(entry.target.id);
    link.setAttribute("aria-current", "true");
    link.parentElement.scrollTo({ left: link.offsetLeft - 48 });
  }
}, { rootMargin: "-20% 0px -70% 0px" });
document.querySelectorAll("section[id]").forEach((section) => watch.observe(section));
