// Zoom, brightness and contrast of both images together, and answers by keyboard. The form also works without it.
"use strict";
const views = [...document.querySelectorAll(".view")];
const form = document.getElementById("answers");
const questions = [...form.querySelectorAll("fieldset")];
const START = { scale: 1, x: 0, y: 0, brightness: 1, contrast: 1 };
const state = { ...START };
let current = 0;
let boxes = true;

const limit = (value, low, high) => Math.min(high, Math.max(low, value));

// x and y: position of the image's top left corner, as a share of the view's side, the same for both images.
function draw() {
  state.x = limit(state.x, 1 - state.scale, 0);
  state.y = limit(state.y, 1 - state.scale, 0);
  for (const view of views) {
    const image = view.querySelector("img");
    const side = view.clientWidth;
    image.style.transform = `translate(${state.x * side}px, ${state.y * side}px) scale(${state.scale})`;
    image.style.filter = `brightness(${state.brightness}) contrast(${state.contrast})`;
    const [x, y, w, h] = inView(view);
    const box = view.querySelector(".box");
    box.hidden = !boxes;
    box.style.left = `${(state.x + x * state.scale) * side}px`;
    box.style.top = `${(state.y + y * state.scale) * side}px`;
    box.style.width = `${w * state.scale * side}px`;
    box.style.height = `${h * state.scale * side}px`;
  }
}

// Returns the object's box as shares of the view's side; an image that is not square is centred in it.
function inView(view) {
  const image = view.querySelector("img");
  const [x, y, w, h] = view.dataset.box.split(" ").map(Number);
  const [width, height] = [image.naturalWidth || 1, image.naturalHeight || 1];
  const longer = Math.max(width, height);
  return [(x + (longer - width) / 2) / longer, (y + (longer - height) / 2) / longer, w / longer, h / longer];
}

function zoom(factor, x = 0.5, y = 0.5) {
  const scale = limit(state.scale * factor, 1, 16);
  state.x = x - ((x - state.x) * scale) / state.scale;
  state.y = y - ((y - state.y) * scale) / state.scale;
  state.scale = scale;
}

function toObject() {
  const [x, y, w, h] = inView(views[0]);
  state.scale = limit(0.4 / Math.max(w, h, 0.025), 1, 16);
  state.x = 0.5 - (x + w / 2) * state.scale;
  state.y = 0.5 - (y + h / 2) * state.scale;
}

function window_(brightness, contrast) {
  state.brightness = limit(state.brightness * brightness, 0.2, 5);
  state.contrast = limit(state.contrast * contrast, 0.2, 8);
}

const tools = {
  "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), o: toObject,
  b: () => { boxes = !boxes; },
  "]": () => window_(1.15, 1), "[": () => window_(1 / 1.15, 1),
  ".": () => window_(1, 1.2), ",": () => window_(1, 1 / 1.2),
  0: () => Object.assign(state, START),
};

function mark(index) {
  current = limit(index, 0, questions.length - 1);
  questions.forEach((one, i) => one.classList.toggle("current", i === current));
}

function firstOpen() {
  const open = questions.findIndex((one) => !one.querySelector("input:checked"));
  return open < 0 ? questions.length - 1 : open;
}

function answer(value) {
  const option = questions[current].querySelector(`input[value="${value}"]`);
  if (!option) return;
  option.checked = true;
  mark(current + 1 < questions.length ? current + 1 : firstOpen());
}

const answers = { ArrowLeft: "left", ArrowRight: "right" };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "Tab" || (key === " " && event.target.closest("button, input"))) return;
  if (key in answers) answer(answers[key]);
  else if (/^[1-5]$/.test(key)) answer(key);
  else if (key === "Backspace") mark(current - 1);
  else if (key === "Enter" && !event.target.closest("button")) {
    if (questions.some((one) => !one.querySelector("input:checked"))) mark(firstOpen());
    else if (!event.repeat) form.requestSubmit();
  } else if (key in tools) {
    tools[key]();
    draw();
  } else return;
  event.preventDefault();
});
form.addEventListener("change", (event) => {
  const answered = questions.indexOf(event.target.closest("fieldset"));
  mark(answered + 1 < questions.length && !questions[answered + 1].querySelector("input:checked") ? answered + 1 : firstOpen());
});
// The server ignores a second submission of the same pair.
form.addEventListener("submit", () => { form.querySelector("button").disabled = true; });
document.querySelectorAll("[data-key]").forEach((button) => button.addEventListener("click", () => {
  tools[button.dataset.key]();
  draw();
}));

for (const view of views) {
  view.append(Object.assign(document.createElement("div"), { className: "box" }));
  view.addEventListener("wheel", (event) => {
    event.preventDefault();
    const place = view.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 400), (event.clientX - place.left) / place.width, (event.clientY - place.top) / place.height);
    draw();
  }, { passive: false });
  view.addEventListener("contextmenu", (event) => event.preventDefault());
  view.addEventListener("pointerdown", (event) => view.setPointerCapture(event.pointerId));
  view.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    if (event.buttons & 2) window_(Math.exp(-event.movementY / 200), Math.exp(event.movementX / 200));
    else {
      state.x += event.movementX / view.clientWidth;
      state.y += event.movementY / view.clientWidth;
    }
    draw();
  });
  view.querySelector("img").addEventListener("load", draw);
}
window.addEventListener("resize", draw);
window.addEventListener("pageshow", () => { form.querySelector("button").disabled = false; mark(firstOpen()); draw(); });
mark(0);
draw();
