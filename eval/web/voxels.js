"use strict";
// Volumes of a keyframe as cubes: WebGL 2, one instance per voxel, drawn when something changed and not otherwise.
(() => {
  const DATA = JSON.parse(document.getElementById("voxels").textContent);
  const ROOT = document.getElementById("viewer");
  const CODES = Object.values(DATA.verdicts); // nothing, hit, missed, invented, not judged
  const [HIT, MISSED, INVENTED, UNJUDGED] = [1, 2, 3, 4];
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const WHEEL = bytes(DATA.wheel), SIDE = Math.sqrt(WHEEL.length / 3);

  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  }

  // --- what a keyframe holds

  async function unpack(frame) {
    const stream = new Blob([bytes(frame.data)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const raw = new Uint8Array(await new Response(stream).arrayBuffer()), n = frame.count;
    const plane = (k) => raw.subarray(k * n, (k + 1) * n);
    const signed = (k) => new Int8Array(raw.buffer, raw.byteOffset + k * n, n);
    const [, ny, nz] = frame.shape, cells = new Uint16Array(3 * n);
    let flat = 0;
    for (let i = 0; i < n; i++) {
      flat += plane(0)[i] + 256 * plane(1)[i] + 65536 * plane(2)[i] + 16777216 * plane(3)[i];
      cells[3 * i] = Math.floor(flat / (ny * nz));
      cells[3 * i + 1] = Math.floor(flat / nz) % ny;
      cells[3 * i + 2] = flat % nz;
    }
    return { cells, bits: plane(4), flow: frame.volumes.map((_, v) => [signed(5 + 2 * v), signed(6 + 2 * v)]) };
  }

  // The verdict on voxel i of volume v against volume r.
  function verdict(found, i, v, r) {
    const mine = (found.bits[i] >> v) & 1, theirs = (found.bits[i] >> r) & 1;
    if (!(found.bits[i] >> 7)) return mine ? UNJUDGED : 0;
    return mine ? (theirs ? HIT : INVENTED) : theirs ? MISSED : 0;
  }

  // Which volume is judged by which: by the last one, the truth where there is some, which itself is judged by none.
  function compared(frame, state) {
    const last = frame.volumes.length - 1;
    return [state.volume === last ? 0 : state.volume, last];
  }

  // Positions and colours of the voxels that are shown, and how many.
  function select(frame, found, state) {
    const cells = new Uint16Array(3 * frame.count), colours = new Uint8Array(4 * frame.count);
    const [judged, reference] = compared(frame, state);
    const [vx, vy] = found.flow[state.volume];
    let n = 0;
    for (let i = 0; i < frame.count; i++) {
      const code = state.colour === "errors" ? verdict(found, i, judged, reference) : 0;
      if (state.colour === "errors" ? !code || (state.hideRight && code === HIT) : !((found.bits[i] >> state.volume) & 1))
        continue;
      let table = frame.heights, at = 3 * found.cells[3 * i + 2];
      if (state.colour === "errors") [table, at] = [CODES[code], 0];
      if (state.colour === "motion") [table, at] = wheel(vx[i] * DATA.step, vy[i] * DATA.step);
      cells.set(found.cells.subarray(3 * i, 3 * i + 3), 3 * n);
      for (let k = 0; k < 3; k++) colours[4 * n + k] = table[at + k];
      n++;
    }
    return { cells, colours, n };
  }
  function wheel(vx, vy) {
    if (vx === 0 && vy === 0) return [DATA.still, 0];
    const over = Math.max(1, Math.hypot(vx, vy) / DATA.full) * DATA.full; // forward is up, left is left
    const pixel = (v) => Math.min(SIDE - 1, Math.floor(((1 - v / over) / 2) * SIDE));
    return [WHEEL, 3 * (pixel(vx) * SIDE + pixel(vy))];
  }

  // --- drawing

  const VERTEX = `#version 300 es
    in vec3 corner; in vec3 normal; in vec2 face; in vec3 cell; in vec4 colour;
    uniform mat4 view; uniform vec3 eye, lower, size;
    out vec3 tint; out vec2 at; out float far;
    void main() {
      vec3 centre = lower + (cell + 0.5) * size;
      vec3 side = mix(vec3(-1.0), vec3(1.0), step(centre, eye)); // the three faces that can be seen
      vec3 point = centre + 0.5 * size * corner * side;
      vec3 out_of = normal * side;
      float light = 0.66 + 0.34 * max(dot(out_of, normalize(vec3(-0.45, 0.5, 0.9))), 0.0) - 0.10 * abs(out_of.x);
      tint = colour.rgb * light;
      at = face;
      far = distance(eye, point);
      gl_Position = view * vec4(point, 1.0);
    }`;
  const FRAGMENT = `#version 300 es
    precision highp float;
    in vec3 tint; in vec2 at; in float far; out vec4 result;
    void main() {
      vec2 border = min(at, 1.0 - at);
      float width = max(fwidth(at.x), fwidth(at.y));
      float line = (1.0 - smoothstep(0.0, 0.03 + width, min(border.x, border.y))) * clamp(1.0 - 4.0 * width, 0.0, 1.0);
      float haze = clamp((far - 70.0) / 160.0, 0.0, 0.4);
      result = vec4(mix(tint * (1.0 - 0.22 * line), vec3(0.965, 0.973, 0.98), haze), 1.0);
    }`;

  // Three faces of a unit cube, at +1 of each axis: corner, normal and place on the face of each of 18 vertices.
  function cube() {
    const values = [];
    for (let axis = 0; axis < 3; axis++)
      for (const [a, b] of [[0, 0], [1, 0], [1, 1], [0, 0], [1, 1], [0, 1]]) {
        const corner = [0, 0, 0], normal = [0, 0, 0];
        corner[axis] = normal[axis] = 1;
        corner[(axis + 1) % 3] = 2 * a - 1;
        corner[(axis + 2) % 3] = 2 * b - 1;
        values.push(...corner, ...normal, a, b);
      }
    return new Float32Array(values);
  }

  class Scene {
    constructor(canvas) {
      const gl = (this.gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true }));
      if (!gl) return;
      this.canvas = canvas;
      this.program = gl.createProgram();
      for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
        const shader = gl.createShader(kind);
        gl.shaderSource(shader, text);
        gl.compileShader(shader);
        gl.attachShader(this.program, shader);
      }
      gl.linkProgram(this.program);
      if (!gl.getProgramParameter(this.program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(this.program));
      gl.useProgram(this.program);
      this.buffers = { cube: gl.createBuffer(), cells: gl.createBuffer(), colours: gl.createBuffer() };
      this.attribute("cube", cube(), [["corner", 3, gl.FLOAT, 0], ["normal", 3, gl.FLOAT, 12], ["face", 2, gl.FLOAT, 24]], 32, 0);
      gl.enable(gl.DEPTH_TEST);
      gl.clearColor(0.925, 0.941, 0.961, 1);
    }
    attribute(buffer, values, parts, stride, divisor) {
      const gl = this.gl;
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[buffer]);
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
      for (const [name, count, type, offset] of parts) {
        const at = gl.getAttribLocation(this.program, name);
        gl.enableVertexAttribArray(at);
        gl.vertexAttribPointer(at, count, type, type === gl.UNSIGNED_BYTE, stride, offset);
        gl.vertexAttribDivisor(at, divisor);
      }
    }
    fill(shown) {
      const gl = this.gl;
      this.attribute("cells", shown.cells, [["cell", 3, gl.UNSIGNED_SHORT, 0]], 6, 1);
      this.attribute("colours", shown.colours, [["colour", 4, gl.UNSIGNED_BYTE, 0]], 4, 1);
      this.count = shown.n;
    }
    draw(frame, camera) {
      const gl = this.gl, ratio = Math.min(2, window.devicePixelRatio || 1);
      const width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
      const height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
      if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
      gl.viewport(0, 0, width, height);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      const { matrix, eye } = camera.matrices(width / height);
      const at = (name) => gl.getUniformLocation(this.program, name);
      gl.uniformMatrix4fv(at("view"), false, matrix);
      gl.uniform3fv(at("eye"), eye);
      gl.uniform3fv(at("lower"), frame.lower);
      gl.uniform3fv(at("size"), frame.size);
      if (this.count) gl.drawArraysInstanced(gl.TRIANGLES, 0, 18, this.count);
    }
  }

  // A camera that circles a point on the ground; z is up. Angles in radians, lengths in metres.
  class Orbit {
    constructor(frame) {
      const middle = (k) => frame.lower[k] + (frame.shape[k] * frame.size[k]) / 2;
      this.span = Math.max(frame.shape[0] * frame.size[0], frame.shape[1] * frame.size[1]);
      this.target = [middle(0), middle(1), 0];
      this.look(-0.15, 0.62, 1.05);
    }
    look(turn, pitch, spans) {
      Object.assign(this, { turn, pitch, distance: spans * this.span });
    }
    axes() {
      const [c, s] = [Math.cos(this.turn), Math.sin(this.turn)], [cp, sp] = [Math.cos(this.pitch), Math.sin(this.pitch)];
      return { back: [-c * cp, -s * cp, sp], right: [s, -c, 0], up: [c * sp, s * sp, cp] };
    }
    rotate(dx, dy) {
      this.turn -= dx * 0.006;
      this.pitch = Math.min(Math.PI / 2, Math.max(0.03, this.pitch + dy * 0.006));
    }
    zoom(factor) {
      this.distance = Math.min(4 * this.span, Math.max(0.02 * this.span, this.distance * factor));
    }
    shift(dx, dy, height) {
      const metre = (2 * this.distance * Math.tan(0.35)) / height, [c, s] = [Math.cos(this.turn), Math.sin(this.turn)];
      this.target[0] += metre * (-dx * s + dy * c);
      this.target[1] += metre * (dx * c + dy * s);
    }
    matrices(aspect) {
      const { back, right, up } = this.axes(), eye = this.target.map((t, k) => t + this.distance * back[k]);
      const dot = (a) => a[0] * eye[0] + a[1] * eye[1] + a[2] * eye[2], f = 1 / Math.tan(0.35);
      const near = 0.02 * this.distance, far = this.distance + 2 * this.span, depth = (near + far) / (near - far);
      const row = (a) => [a[0], a[1], a[2], -dot(a)];
      const x = row(right).map((v) => (v * f) / aspect), y = row(up).map((v) => v * f), z = row(back);
      const clip = z.map((v) => v * depth);
      clip[3] += (2 * near * far) / (near - far);
      const matrix = new Float32Array(16);
      [x, y, clip, z.map((v) => -v)].forEach((r, k) => r.forEach((v, column) => (matrix[4 * column + k] = v)));
      return { matrix, eye };
    }
  }

  // --- the page

  function start() {
    const canvas = el("canvas", { tabindex: 0, "aria-label": "voxels in three dimensions" });
    const scene = new Scene(canvas);
    if (!scene.gl || typeof DecompressionStream === "undefined") {
      ROOT.append(el("p", { class: "note" }, "This browser lacks WebGL 2 or DecompressionStream: the pictures below show the same volumes."));
      return;
    }
    const state = { frame: 0, volume: 0, colour: "height", hideRight: false };
    const bar = el("div", { class: "bar" }), text = el("p", { class: "meaning" });
    ROOT.append(bar, canvas, text);
    let frame, found, camera, waiting = false;
    const redraw = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        scene.draw(frame, camera);
      });
    };
    const refill = () => {
      scene.fill(select(frame, found, state));
      canvas.dataset.voxels = scene.count;
      describe();
      redraw();
    };
    async function load(k) {
      const next = DATA.frames[k], content = await unpack(next);
      const moved = frame && next.shape.join() === frame.shape.join();
      [state.frame, frame, found] = [k, next, content];
      state.volume = Math.min(state.volume, frame.volumes.length - 1);
      if (!moved) camera = new Orbit(frame);
      if (frame.volumes.length < 2 && state.colour === "errors") state.colour = "height";
      buttons();
      refill();
    }
    function describe() {
      const [mine, theirs] = compared(frame, state).map((v) => frame.volumes[v]), errors = state.colour === "errors";
      const coarse = frame.coarser > 1 ? ` Voxels are shown ${frame.coarser} times as large.` : "";
      const name = errors ? `${mine} against ${theirs}` : frame.volumes[state.volume];
      const legend = errors ? ` Green: in both; blue: only in the ${theirs}; orange: only in the ${mine}.` : "";
      text.textContent = `${name}: ${scene.count.toLocaleString("en")} voxels of surfaces.${coarse}${legend}` +
        " Drag: turn. Wheel or pinch: zoom. Shift and drag, right button or two fingers: move.";
    }
    function choice(label, options, key) {
      const group = el("span", { role: "group", "aria-label": label }, label);
      for (const [value, name] of options)
        group.append(el("button", { type: "button", "data-key": key, "data-value": value, "aria-pressed": state[key] === value,
          onclick: () => { state[key] = value; buttons(); refill(); } }, name));
      return group;
    }
    function buttons() {
      const colours = [["height", "height"], ["motion", "motion"], ...(frame.volumes.length > 1 ? [["errors", "errors"]] : [])];
      const parts = [choice("volume", frame.volumes.map((name, v) => [v, name]), "volume"), choice("colour", colours, "colour")];
      if (state.colour === "errors") parts.push(choice("what is right", [[false, "shown"], [true, "hidden"]], "hideRight"));
      parts.push(el("span", { role: "group", "aria-label": "view" }, "view",
        el("button", { type: "button", onclick: () => { camera = new Orbit(frame); redraw(); } }, "from behind"),
        el("button", { type: "button", onclick: () => { camera = new Orbit(frame); camera.look(0, Math.PI / 2, 1.45); redraw(); } }, "from above")));
      if (DATA.frames.length > 1) {
        const list = el("select", { "aria-label": "keyframe", onchange: (event) => load(Number(event.target.value)) },
          ...DATA.frames.map((f, k) => el("option", { value: k }, f.title)));
        list.value = state.frame;
        parts.unshift(list);
      } else parts.unshift(el("b", {}, frame.title));
      bar.replaceChildren(...parts);
    }
    handle(canvas, () => camera, redraw);
    new ResizeObserver(() => frame && redraw()).observe(canvas);
    load(0).catch((error) => text.append(`The volumes cannot be shown: ${error.message}`));
  }

  function handle(canvas, camera, redraw) {
    const fingers = new Map();
    const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const dx = event.clientX - before.x, dy = event.clientY - before.y, apart = fingers.size === 2 ? spread() : 0;
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (fingers.size === 2) camera().zoom(apart / Math.max(1, spread()));
      if (fingers.size === 2 || event.shiftKey || event.buttons & 2) camera().shift(dx, dy, canvas.clientHeight);
      else camera().rotate(dx, dy);
      redraw();
    });
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      camera().zoom(Math.exp(event.deltaY * (event.deltaMode ? 0.03 : 0.0012)));
      redraw();
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [20, 0], ArrowRight: [-20, 0], ArrowUp: [0, 20], ArrowDown: [0, -20] }[event.key];
      if (!step && !"+-".includes(event.key)) return;
      event.preventDefault();
      if (step) camera().rotate(...step);
      else camera().zoom(event.key === "+" ? 0.85 : 1.18);
      redraw();
    });
  }

  start();
})();
