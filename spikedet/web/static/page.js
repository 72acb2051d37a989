"use strict";
// The page of `spikedet web`. It asks only its own server: about, sample, look, film, spikes.

const $ = (id) => document.getElementById(id);
const LOWEST = 0.05; // confidence that is asked for: the slider leaves out what is below it
const STEP_SECONDS = 0.4; // of a time step in playback
const MAPS_TITLE = "Bright places fire. For pictures, not for videos.";
const LETTERS = 12; // pixels of the screen: the least height of the words on a picture
const CAMERA_SIDE = 640; // pixels of the longer side of a frame of the camera

let about = null;
let file = null; // the picture or video that is shown, or null with the camera
let shots = []; // what is played back: of each time step or frame its picture and what was found
let beside = null; // what the float network found
let asked = null; // AbortController of the request that is under way
let player = null; // timer of the playback
let camera = null; // MediaStream

function say(text, error = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", error);
}

// A colour of its own for each class; neighbours are far apart on the colour circle.
const colour = (label) => `hsl(${((label * 0.618034) % 1) * 360} 85% 45%)`;

const milliseconds = (seconds) => `${(seconds * 1000).toFixed(0)} ms`;
const millijoules = (energy) => `${energy.toPrecision(3)} mJ`;
const chosen = (objects) => objects.filter((each) => each.score > Number($("conf").value));

function draw(canvas, image, size, objects) {
  canvas.width = image.width;
  canvas.height = image.height;
  const context = canvas.getContext("2d");
  const scale = image.width / size.width;
  const shrunk = image.width / (canvas.clientWidth || image.width); // the page shows it smaller
  const letters = Math.round(Math.max(LETTERS * Math.max(1, shrunk), (image.width + image.height) / 90));
  context.drawImage(image, 0, 0);
  context.lineWidth = Math.max(2, letters / 6);
  context.font = `${letters}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const each of [...objects].reverse()) { // the best on top
    const [x1, y1, x2, y2] = each.box.map((value) => value * scale);
    context.strokeStyle = colour(each.label);
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
  const words = []; // where they stand: no two over each other, the best has its place first
  const high = letters + 4;
  for (const each of objects) {
    const [x1, y1] = each.box.map((value) => value * scale);
    const text = `${each.class} ${each.score.toFixed(2)}`;
    const wide = context.measureText(text).width + 6;
    const left = Math.max(0, Math.min(x1, canvas.width - wide));
    const hit = ([x, y, w]) => x < left + wide && left < x + w && Math.abs(y - top) < high;
    let top = Math.max(0, y1 - high);
    for (let over; (over = words.find(hit)); ) top = over[1] + high;
    words.push([left, top, wide]);
    context.fillStyle = colour(each.label);
    context.fillRect(left, top, wide, high);
    context.fillStyle = "white";
    context.fillText(text, left + 3, top + 2);
  }
  canvas.dataset.words = JSON.stringify(words);
}

// Shows one of the shots, as the sliders are now.
function show(index) {
  const shot = shots[index];
  if (!shot) return;
  const objects = chosen(shot.objects);
  $("step").max = shots.length - 1;
  $("step").value = index;
  $("step").disabled = $("play").disabled = shots.length < 2;
  $("step-value").textContent = shot.label;
  $("spiking-title").textContent = `spiking network, after ${shot.t} of ${shot.T} time steps`;
  draw($("spiking"), shot.image, shot.size, objects);
  $("spiking").dataset.boxes = objects.length;
  $("spiking-objects").textContent = objects.length;
  $("spiking-time").textContent = milliseconds(shot.seconds);
  const part = (100 * shot.energy) / about.float_energy;
  $("spiking-energy").textContent = `${millijoules(shot.energy)} (${part.toFixed(0)} % of float)`;
  $("spiking-rate").textContent = shot.rate.toFixed(3);
  shot.rates.forEach((rate, layer) => {
    $("rates").children[3 * layer + 1].firstChild.style.width = `${100 * Math.min(1, rate)}%`;
    $("rates").children[3 * layer + 2].textContent = rate.toFixed(3);
  });
  $("float-view").hidden = !beside;
  for (const id of ["float-objects", "float-time", "float-energy"]) {
    if (!beside) $(id).textContent = "-";
  }
  if (!beside) return;
  const others = chosen(beside.objects);
  draw($("float"), shot.image, shot.size, others);
  $("float").dataset.boxes = others.length;
  $("float-objects").textContent = others.length;
  $("float-time").textContent = milliseconds(beside.seconds);
  $("float-energy").textContent = millijoules(about.float_energy);
}

// Nothing is shown any more: what was found before is not of the file that was chosen now.
function clear() {
  stopPlaying();
  [shots, beside] = [[], null];
  for (const id of ["spiking", "float"]) {
    $(id).getContext("2d").clearRect(0, 0, $(id).width, $(id).height);
    delete $(id).dataset.boxes;
  }
  for (const name of ["objects", "time", "energy"]) {
    $(`spiking-${name}`).textContent = $(`float-${name}`).textContent = "-";
  }
  $("spiking-rate").textContent = $("step-value").textContent = "-";
  $("spiking-title").textContent = "spiking network";
  $("step").disabled = $("play").disabled = true;
  $("maps").replaceChildren();
  $("maps-title").textContent = MAPS_TITLE;
  for (let layer = 0; layer < about.layers.length; layer += 1) {
    $("rates").children[3 * layer + 1].firstChild.style.width = "0";
    $("rates").children[3 * layer + 2].textContent = "";
  }
}

function stopPlaying() {
  clearTimeout(player);
  player = null;
  $("play").textContent = "play";
}

function play() {
  let index = Number($("step").value);
  if (index >= shots.length - 1) index = -1; // from the beginning again
  const next = () => {
    index += 1;
    show(index);
    const now = shots[index], then = shots[index + 1];
    if (!then) return stopPlaying();
    const seconds = now.time === undefined ? STEP_SECONDS : Math.max(0.04, then.time - now.time);
    player = setTimeout(next, 1000 * seconds);
  };
  $("play").textContent = "stop";
  next();
}

// `fetch`, but for what it says of a server that is gone ("Failed to fetch").
async function asking(address, options = {}) {
  try {
    return await fetch(address, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Error("The server does not answer. Does spikedet web still run?");
  }
}

// Answers of the server, line by line as they come. Throws the sentence of an error.
async function* ask(path, body, options, signal) {
  const address = `${path}?${new URLSearchParams(options)}`;
  const answer = await asking(address, { method: "POST", body, signal });
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error || `The server refuses this (${answer.status}).`);
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { value, done } = await reader.read().catch((error) => {
      if (signal.aborted) throw error;
      throw new Error("The server stopped before its answer was complete.");
    });
    if (done) return;
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const line of lines.map((each) => JSON.parse(each))) {
      if (line.error) throw new Error(line.error);
      signal.throwIfAborted(); // lines that came with the one before
      yield line;
    }
  }
}

async function decoded(address, signal) {
  const image = new Image();
  image.src = address;
  await image.decode();
  signal.throwIfAborted();
  return image;
}

// One request at a time: a new one ends that before it, and then the older one shows nothing more.
// True if the work was completed, false if it failed (shown), null if it was ended.
async function alone(work) {
  asked?.abort();
  const own = (asked = new AbortController());
  try {
    await work(own.signal);
  } catch (error) {
    if (own.signal.aborted) return null;
    say(error.message || String(error), true);
    return false;
  } finally {
    if (asked === own) asked = null;
  }
  return own.signal.aborted ? null : true;
}

// Looks at a picture; `live` shows the last step alone, as soon as it is there.
async function look(blob, signal, live = false) {
  const T = Number($("T").value);
  const options = { T, conf: LOWEST };
  if (about.float && $("beside").checked) options.float = 1;
  const seen = [];
  let other = null, image = null, size = null;
  for await (const line of ask("look", blob, options, signal)) {
    if (line.kind === "picture") {
      [image, size] = [await decoded(line.picture, signal), line];
      if (!live) [shots, beside] = [seen, null];
    } else if (line.kind === "step") {
      seen.push({ ...line, T, image, size, label: `step ${line.t} of ${T}` });
      if (!live) show(seen.length - 1);
    } else if (line.kind === "float") {
      other = line;
    }
  }
  if (signal.aborted) return;
  [shots, beside] = [seen, other];
  show(seen.length - 1);
}

async function film(blob, signal) {
  const T = Number($("T").value);
  shots = [];
  beside = null;
  try {
    for await (const line of ask("film", blob, { T, conf: LOWEST }, signal)) {
      const label = `frame ${shots.length + 1}, ${line.time.toFixed(2)} s`;
      shots.push({ ...line, T, image: await decoded(line.picture, signal), size: line, label });
      say(`looking at the video: frame ${shots.length}`);
      show(shots.length - 1);
    }
  } finally {
    const seen = shots.length;
    if (seen && !signal.aborted) {
      say(seen < about.limits.frames ? `${seen} frames. Play them again below.`
        : `These are its first ${seen} frames; no more are looked at here.`);
    }
  }
}

const isVideo = (blob) => blob.type.startsWith("video/") || blob.type === "image/gif";

async function again() {
  if (!file) return;
  stopPlaying();
  $("spikes").disabled = isVideo(file);
  say("looking ...");
  const done = await alone((signal) => (isVideo(file) ? film(file, signal) : look(file, signal)));
  if (done && !isVideo(file)) {
    const T = Number($("T").value);
    const other = about.can_run_longer ? T < about.made_for : T !== about.made_for;
    const none = chosen(shots.at(-1)?.objects ?? []).length === 0;
    const found = none ? "Nothing is found: lower the confidence, or take more time steps. " : "";
    const note = other ? ` These weights were made for T=${about.made_for} and see best there.` : "";
    say(`${found}Move the step below, or play the time steps again.${note}`);
  }
  document.body.dataset.answers = Number(document.body.dataset.answers || 0) + 1;
}

function open(blob) {
  if (!blob) return;
  closeCamera();
  const most = about.limits.megabytes;
  if (!/^(image|video)\//.test(blob.type)) {
    return say("This file is neither a picture nor a video.", true);
  }
  if (blob.size > 1e6 * most) {
    return say(`This file is too large; expected at most ${most} MB.`, true);
  }
  file = blob;
  clear();
  again();
}

async function openCamera() {
  if (!navigator.mediaDevices) {
    return say("The browser gives its camera to localhost and to HTTPS pages only.", true);
  }
  $("camera").disabled = true; // a second click would open a second camera
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: true });
  } catch (error) {
    return say(`The camera cannot be used: ${error.message}.`, true);
  } finally {
    $("camera").disabled = false;
  }
  const own = camera, eye = $("eye"), frame = document.createElement("canvas");
  stopPlaying();
  file = null;
  $("spikes").disabled = true;
  $("camera").textContent = "stop the camera";
  eye.srcObject = own;
  await eye.play();
  let frames = 0;
  const begin = performance.now();
  while (camera === own) {
    const scale = Math.min(1, CAMERA_SIDE / Math.max(eye.videoWidth, eye.videoHeight));
    frame.width = Math.round(eye.videoWidth * scale);
    frame.height = Math.round(eye.videoHeight * scale);
    frame.getContext("2d").drawImage(eye, 0, 0, frame.width, frame.height);
    const blob = await new Promise((done) => frame.toBlob(done, "image/jpeg", 0.9));
    if (camera !== own) break;
    if (!(await alone((signal) => look(blob, signal, true))) || camera !== own) break;
    frames += 1;
    const rate = (1000 * frames) / (performance.now() - begin);
    say(`${rate.toFixed(1)} frames a second`);
    document.body.dataset.frames = frames;
  }
  if (camera === own) closeCamera();
}

function closeCamera() {
  if (!camera) return;
  asked?.abort(); // the frame that is on its way
  camera.getTracks().forEach((track) => track.stop());
  camera = null;
  $("eye").srcObject = null;
  $("camera").textContent = "camera";
}

async function spikes() {
  if (!file || isVideo(file)) return;
  const title = $("maps-title");
  $("maps").replaceChildren();
  title.textContent = "computing ...";
  const options = { T: $("T").value, layer: $("layer").value };
  const done = await alone(async (signal) => {
    for await (const line of ask("spikes", file, options, signal)) {
      const captions = [
        ...line.steps.map((each) => [each.png, `step ${each.t}, all channels`]),
        ...line.channels.map((each) => [
          each.png, `channel ${each.channel}, all steps: ${each.rate.toFixed(3)}`,
        ]),
      ];
      for (const [address, caption] of captions) {
        const figure = document.createElement("figure");
        const text = document.createElement("figcaption");
        text.textContent = caption;
        figure.append(await decoded(address, signal), text);
        $("maps").append(figure);
      }
      title.textContent = `${line.layer}, T=${line.T}. Bright places fire. First come time steps: how many `
        + "channels fire at each place. Then come the channels that fire most: how often, over all steps.";
    }
  });
  if (done === false) title.textContent = MAPS_TITLE;
}

function labels() {
  $("T-value").textContent = $("T").value;
  $("conf-value").textContent = Number($("conf").value).toFixed(2);
}

async function start() {
  about = await (await asking("about")).json();
  const made = `made for T=${about.made_for}`;
  $("about").textContent = `${about.weights}, ${made}, ${about.imgsz} pixels. Engine ${about.engine}.`;
  $("T").max = about.limits.T;
  $("T").value = about.T;
  $("beside-label").hidden = $("float-row").hidden = !about.float;
  about.layers.forEach((name) => {
    $("layer").append(new Option(name));
    const button = document.createElement("button");
    const track = document.createElement("div"), bar = document.createElement("div");
    const rate = document.createElement("span");
    button.textContent = name;
    track.className = "track";
    bar.className = "bar";
    bar.style.width = "0";
    track.append(bar);
    button.onclick = () => {
      $("layer").value = name;
      spikes();
    };
    $("rates").append(button, track, rate);
  });
  labels();
  $("file").onchange = () => {
    open($("file").files[0]);
    $("file").value = ""; // so that the same file can be chosen again
  };
  $("sample").onclick = () =>
    asking("sample").then((answer) => answer.blob()).then(open).catch((error) => say(error.message, true));
  $("camera").onclick = () => {
    if (!camera) return openCamera();
    closeCamera();
    say("The camera is off.");
  };
  $("T").oninput = $("conf").oninput = labels;
  window.onresize = () => show(Number($("step").value)); // words on the picture keep their size
  $("T").onchange = $("beside").onchange = again;
  $("conf").addEventListener("input", () => show(Number($("step").value)));
  $("step").oninput = () => {
    stopPlaying();
    show(Number($("step").value));
  };
  $("play").onclick = () => (player ? stopPlaying() : play());
  $("spikes").onclick = spikes;
  document.ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add("drop");
  };
  document.ondragleave = () => document.body.classList.remove("drop");
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("drop");
    open(event.dataTransfer.files[0]);
  };
  document.body.dataset.ready = "yes";
}

start().catch((error) => say(error.message, true));
