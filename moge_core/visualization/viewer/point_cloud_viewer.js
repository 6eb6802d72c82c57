// Point clouds that turn in the page: one canvas, many clouds, the one that is shown decoded when it is chosen.
//
// The page holds an element [data-point-cloud-viewer] with, inside it,
//   canvas
//   [data-viewer-message]             where it says what it cannot do; hidden otherwise
//   [data-viewer-caption]             the caption of the cloud that is shown
//   [data-viewer-action="reset|top"]  buttons, optional
//   input[data-viewer-size]           a slider of the point size, optional
// and anywhere buttons [data-show-cloud="N"] and blocks <script type="application/json" data-cloud="N"> of the form
//   {caption, count, rows, pivot, tan_x, tan_y, scale: [x, y, z], offset: [x, y, z], data}
// with `data` the base64 of count x 3 little-endian int16 (positions / scale, less offset) and count x 3 bytes of sRGB.

import {
  BufferAttribute, BufferGeometry, LinearSRGBColorSpace, PerspectiveCamera, Points, Scene, ShaderMaterial, WebGLRenderer,
} from 'three';
import { OrbitControls } from 'three/examples/jsm/controls/OrbitControls.js';

// A point covers what its pixel covered: its size grows with the depth at which the camera saw it.
const VERTEX_SHADER = `
  uniform float spacing;
  uniform float leastSize;
  attribute vec3 tint;
  varying vec3 shade;
  void main() {
    vec4 world = modelMatrix * vec4(position, 1.0);
    vec4 view = viewMatrix * world;
    shade = tint;
    gl_Position = projectionMatrix * view;
    gl_PointSize = clamp(spacing * -world.z / max(-view.z, 1e-6), leastSize, 40.0 * leastSize);
  }`;
const FRAGMENT_SHADER = `
  varying vec3 shade;
  void main() { gl_FragColor = vec4(shade, 1.0); }`;

const INT16_MAX = 32767;
const KEY_STEP = Math.PI / 36;
const FIRST_TURN = 0.28;
const FIRST_TILT = 0.16;

class PointCloudViewer {
  constructor(root) {
    this.root = root;
    this.canvas = root.querySelector('canvas');
    this.message = root.querySelector('[data-viewer-message]');
    this.caption = root.querySelector('[data-viewer-caption]');
    this.points = null;
    this.cloud = null;
    this.sizeFactor = 1;
    this.isFrameAsked = false;
  }

  start() {
    // Asked for here and not by three.js, which would write an error to the console where there is no WebGL.
    const context = this.canvas.getContext('webgl2', {
      alpha: true, antialias: true, preserveDrawingBuffer: true, powerPreference: 'low-power',
    });
    if (!context) {
      this.canvas.dataset.state = 'unavailable';
      this.say('This browser offers no WebGL 2, so the clouds cannot be turned here. '
        + 'Open the PLY files beside this page in MeshLab or CloudCompare.');
      return false;
    }
    this.renderer = new WebGLRenderer({ canvas: this.canvas, context });
    this.renderer.outputColorSpace = LinearSRGBColorSpace; // colours come as sRGB bytes and stay what they are
    this.renderer.setClearColor(0x000000, 0); // the page's own background shines through, in light and dark
    this.scene = new Scene();
    this.camera = new PerspectiveCamera();
    this.material = new ShaderMaterial({
      uniforms: { spacing: { value: 1 }, leastSize: { value: 1 } },
      vertexShader: VERTEX_SHADER,
      fragmentShader: FRAGMENT_SHADER,
    });
    this.controls = new OrbitControls(this.camera, this.canvas);
    this.controls.enableDamping = !window.matchMedia('(prefers-reduced-motion: reduce)').matches;
    this.controls.dampingFactor = 0.12;
    this.controls.zoomToCursor = true;
    this.controls.addEventListener('change', () => this.askFrame());
    this.listen();
    return true;
  }

  listen() {
    // The wheel scrolls the page until the canvas was clicked. Capture, so that a pinch finds it allowed already.
    this.controls.enableZoom = false;
    this.canvas.addEventListener('pointerdown', () => {
      this.canvas.focus({ preventScroll: true });
      this.controls.enableZoom = true;
    }, { capture: true });
    this.canvas.addEventListener('blur', () => { this.controls.enableZoom = false; });
    this.canvas.addEventListener('keydown', (event) => this.onKey(event));
    this.canvas.addEventListener('webglcontextlost', () => this.say('The graphics context was lost. Reload the page.'));
    this.canvas.addEventListener('webglcontextrestored', () => { this.say(''); this.askFrame(); });
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    for (const button of this.root.querySelectorAll('[data-viewer-action]')) {
      button.addEventListener('click', () => this.look(button.dataset.viewerAction));
    }
    const slider = this.root.querySelector('[data-viewer-size]');
    slider?.addEventListener('input', () => { this.sizeFactor = 2 ** Number(slider.value); this.resize(); });
  }

  onKey(event) {
    const actions = {
      ArrowLeft: () => this.controls.rotateLeft(KEY_STEP),
      ArrowRight: () => this.controls.rotateLeft(-KEY_STEP),
      ArrowUp: () => this.controls.rotateUp(KEY_STEP),
      ArrowDown: () => this.controls.rotateUp(-KEY_STEP),
      '+': () => this.controls.dollyIn(1 / 0.9),
      '-': () => this.controls.dollyOut(1 / 0.9),
      Home: () => this.look('reset'),
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
    this.askFrame();
  }

  show(cloud) {
    this.points?.geometry.dispose();
    this.scene.clear();
    this.cloud = cloud;
    const bytes = Uint8Array.from(atob(cloud.data), (char) => char.charCodeAt(0));
    const positions = new Int16Array(bytes.buffer, 0, 3 * cloud.count);
    const geometry = new BufferGeometry();
    geometry.setAttribute('position', new BufferAttribute(positions, 3, true));
    geometry.setAttribute('tint', new BufferAttribute(bytes.subarray(6 * cloud.count), 3, true));
    this.points = new Points(geometry, this.material);
    this.points.frustumCulled = false;
    this.points.scale.fromArray(cloud.scale).multiplyScalar(INT16_MAX);
    this.points.position.fromArray(cloud.offset);
    this.scene.add(this.points);
    this.caption.textContent = cloud.caption;
    this.canvas.setAttribute('aria-label', `Point cloud, ${cloud.caption}`);
    this.resize();
    this.look('reset');
    this.canvas.dataset.state = 'ready';
  }

  // From beside the camera that took the picture, so that depth shows, or from above.
  look(from) {
    if (!this.cloud) return;
    const { pivot } = this.cloud;
    const [turn, tilt, distance] = from === 'top' ? [0, 1.35, 2.2 * pivot] : [FIRST_TURN, FIRST_TILT, 1.2 * pivot];
    // What is left of the last movement would turn the view that is set here.
    const { enableDamping } = this.controls;
    this.controls.enableDamping = false;
    this.controls.update();
    this.controls.enableDamping = enableDamping;
    this.controls.target.set(0, 0, -pivot);
    this.controls.minDistance = 0.01 * pivot;
    this.controls.maxDistance = 50 * pivot;
    this.camera.near = 0.005 * pivot;
    this.camera.far = 200 * pivot;
    this.camera.position.set(
      distance * Math.cos(tilt) * Math.sin(turn),
      distance * Math.sin(tilt),
      distance * Math.cos(tilt) * Math.cos(turn) - pivot,
    );
    this.camera.updateProjectionMatrix();
    this.controls.update();
    this.askFrame();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height || !this.cloud) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    this.renderer.setPixelRatio(ratio);
    this.renderer.setSize(width, height, false);
    // The whole picture fits, whatever the shape of the canvas.
    const aspect = width / height;
    const tangent = Math.max(this.cloud.tan_y, this.cloud.tan_x / aspect);
    this.camera.aspect = aspect;
    this.camera.fov = Math.min((360 / Math.PI) * Math.atan(tangent), 110);
    this.camera.updateProjectionMatrix();
    const pixels = (height * ratio * this.cloud.tan_y) / Math.tan((this.camera.fov * Math.PI) / 360);
    this.material.uniforms.spacing.value = (1.5 * this.sizeFactor * pixels) / this.cloud.rows;
    this.material.uniforms.leastSize.value = 1.5 * this.sizeFactor * ratio;
    // At once, because a canvas whose size was set is empty.
    this.renderer.render(this.scene, this.camera);
  }

  askFrame() {
    if (this.isFrameAsked) return;
    this.isFrameAsked = true;
    requestAnimationFrame(() => {
      this.isFrameAsked = false;
      this.controls.update(); // with damping it moves on, and a change asks for the next frame
      this.renderer.render(this.scene, this.camera);
    });
  }

  say(text) {
    this.message.textContent = text;
    this.message.hidden = !text;
  }
}

function startViewer(root) {
  const buttons = [...document.querySelectorAll('[data-show-cloud]')];
  const block = (number) => document.querySelector(`script[data-cloud="${CSS.escape(number)}"]`);
  const viewer = new PointCloudViewer(root);
  const choose = (number) => {
    try {
      viewer.show(JSON.parse(block(number).textContent));
    } catch (error) {
      viewer.say(`This cloud cannot be shown: ${error.message}`);
    }
    for (const button of buttons) button.setAttribute('aria-pressed', String(button.dataset.showCloud === number));
  };
  if (!buttons.length || !viewer.start()) {
    for (const button of buttons) button.disabled = true;
    return;
  }
  for (const button of buttons) {
    button.addEventListener('click', () => {
      choose(button.dataset.showCloud);
      if (!root.contains(button)) root.scrollIntoView({ block: 'center' });
    });
  }
  choose(buttons[0].dataset.showCloud);
}

for (const root of document.querySelectorAll('[data-point-cloud-viewer]')) startViewer(root);
