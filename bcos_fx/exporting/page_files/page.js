"use strict";
// The file explanation.onnx computes all numbers: (image, target) to (logits, contributions, constants, weights).
// This page brings a photograph to the network's size, and draws what it is given as bcos_fx draws it.

const LISTED = 5;
const PERCENTILE = 0.995; // of all pixels are drawn in proportion, the rest in full
const FOR = [194, 33, 41];
const AGAINST = [33, 84, 173];
const at = (id) => document.getElementById(id);
let facts, session, pixels;

async function start() {
  facts = await (await fetch("page.json")).json();
  ort.env.wasm.wasmPaths = new URL("ort/", document.baseURI).href;
  ort.env.wasm.numThreads = 1; // several need headers that a static server does not send
  // Errors alone: the runtime warns of each constant that it computes at every start, which changes no result.
  const options = { executionProviders: ["wasm"], logSeverityLevel: 3 };
  session = await ort.InferenceSession.create("explanation.onnx", options);
  at("photograph").disabled = false;
  at("photograph").addEventListener("change", () => attempt(read));
  say("Ready.");
}

// Errors are shown on the page, where the user looks.
async function attempt(task, ...given) {
  try {
    await task(...given);
  } catch (error) {
    at("answer").hidden = true;
    say(`That did not work: ${error.message || error}`);
  }
}

function say(text) {
  at("status").textContent = text;
}

async function read() {
  const [file] = at("photograph").files;
  if (!file) return;
  say("Computing …");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error("the file is not an image that this browser can read.");
  }
  pixels = prepared(bitmap);
  await explain(null);
}

// One resize and one crop from the centre, as bcos_fx prepares photographs; resampling is the browser's own.
function prepared(bitmap) {
  const { height, width, crop } = facts;
  const canvas = at("input");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const own = bitmap.width === width && bitmap.height === height;
  const scale = own ? 1 : Math.max(width / bitmap.width, height / bitmap.height) / crop;
  const size = [bitmap.width * scale, bitmap.height * scale];
  context.imageSmoothingEnabled = !own;
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff"; // behind what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, (width - size[0]) / 2, (height - size[1]) / 2, ...size);
  const { data } = context.getImageData(0, 0, width, height);
  const places = width * height;
  const values = new Float32Array(3 * places);
  for (let place = 0; place < places; place++) {
    for (let channel = 0; channel < 3; channel++) {
      values[channel * places + place] = data[4 * place + channel] / 255;
    }
  }
  return values;
}

async function run(target) {
  const [image, index] = session.inputNames;
  return session.run({
    [image]: new ort.Tensor("float32", pixels, [1, 3, facts.height, facts.width]),
    [index]: new ort.Tensor("int64", BigInt64Array.of(BigInt(target)), [1]),
  });
}

async function explain(target) {
  say("Computing …");
  const begun = performance.now();
  const logits = (await run(target ?? 0)).logits.data;
  const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a]);
  const chosen = target ?? order[0];
  const found = await run(chosen);
  at("answer").hidden = false; // before drawing, so that sizes are known
  choose(order.slice(0, LISTED), logits, chosen);
  paint(found, chosen);
  say(`Computed in ${((performance.now() - begun) / 1000).toFixed(2)} s, in this browser.`);
}

const named = (index) => facts.names[index] ?? `class ${index}`;

function choose(indices, logits, chosen) {
  const focused = at("classes").contains(document.activeElement);
  at("classes").replaceChildren(...indices.map((index) => {
    const button = document.createElement("button");
    button.textContent = `${named(index)} ${logits[index].toPrecision(4)}`;
    button.setAttribute("aria-pressed", index === chosen);
    button.addEventListener("click", () => attempt(explain, index));
    return button;
  }));
  if (focused) at("classes").querySelector("[aria-pressed=true]")?.focus();
}

function paint(found, chosen) {
  const contributions = found.contributions.data;
  const constants = found.constants.data;
  const output = found.logits.data[chosen];
  const own = contributions.reduce((sum, value) => sum + value, 0);
  const rest = constants.reduce((sum, value) => sum + value, 0);
  const line = at("sum");
  line.textContent = `${named(chosen)}: ${output.toPrecision(5)} = ${own.toPrecision(5)} from the pixels `
    + `${rest < 0 ? "−" : "+"} ${Math.abs(rest).toPrecision(5)} from ${constants.length} constant${constants.length === 1 ? "" : "s"}`;
  Object.assign(line.dataset, { chosen, output, contributions: own, constants: rest });
  const largest = [...constants.keys()].sort((a, b) => Math.abs(constants[b]) - Math.abs(constants[a]));
  at("constants").replaceChildren(...largest.slice(0, LISTED).map((place) => {
    const row = document.createElement("tr");
    row.insertCell().textContent = facts.constants[place];
    row.insertCell().textContent = constants[place].toPrecision(4);
    return row;
  }));
  draw("contributions", signed(contributions));
  at("colors").hidden = !facts.colors;
  if (facts.colors) draw("weights", colored(found.weights.data, contributions));
}

function draw(id, colors) {
  const canvas = at(id);
  [canvas.width, canvas.height] = [facts.width, facts.height];
  canvas.getContext("2d").putImageData(new ImageData(colors, facts.width, facts.height), 0, 0);
}

// The value from which on a picture is full; the largest where that is 0, and never 0.
function full(values) {
  const sorted = Float32Array.from(values, Math.abs).sort();
  return sorted[Math.floor(PERCENTILE * (sorted.length - 1))] || sorted[sorted.length - 1] || 1;
}

function signed(values) {
  const most = full(values);
  const colors = new Uint8ClampedArray(4 * values.length);
  values.forEach((value, place) => {
    const strength = Math.min(Math.abs(value) / most, 1);
    const end = value > 0 ? FOR : AGAINST;
    end.forEach((color, channel) => { colors[4 * place + channel] = 255 + strength * (color - 255); });
    colors[4 * place + 3] = 255;
  });
  return colors;
}

// Each channel's share of weight on x, opaque where the pixel contributes to the class and W(x) is long.
function colored(weights, contributions) {
  const places = contributions.length;
  const lengths = contributions.map((value, place) => {
    let squares = 0;
    for (let channel = 0; channel < 6; channel++) squares += weights[channel * places + place] ** 2;
    return value > 0 ? Math.sqrt(squares) : 0;
  });
  const opacity = smoothed(lengths);
  const most = full(opacity);
  const colors = new Uint8ClampedArray(4 * places);
  for (let place = 0; place < places; place++) {
    for (let channel = 0; channel < 3; channel++) {
      const straight = Math.max(weights[channel * places + place], 0);
      const inverse = Math.max(weights[(channel + 3) * places + place], 0);
      colors[4 * place + channel] = straight + inverse > 0 ? 255 * straight / (straight + inverse) : 0;
    }
    colors[4 * place + 3] = 255 * Math.min(opacity[place] / most, 1);
  }
  return colors;
}

// The mean over a box of 15 pixels at 224, in proportion, with zeros beyond the border; rows, then columns.
function smoothed(values) {
  const { height, width } = facts;
  const reach = Math.max(0, Math.round((15 * Math.min(height, width) / 224 - 1) / 2));
  const along = (given, step, length, lines, next) => {
    const result = new Float32Array(given.length);
    for (let line = 0; line < lines; line++) {
      for (let place = 0; place < length; place++) {
        let sum = 0;
        for (let near = Math.max(place - reach, 0); near <= Math.min(place + reach, length - 1); near++) {
          sum += given[line * next + near * step];
        }
        result[line * next + place * step] = sum / (2 * reach + 1);
      }
    }
    return result;
  };
  return along(along(values, 1, width, height, width), width, height, width, 1);
}

addEventListener("DOMContentLoaded", () => attempt(start));
