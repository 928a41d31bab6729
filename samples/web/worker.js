// Loads the bundle beside this page, and answers messages. Nothing leaves this machine.
import { env, pipeline, Tensor, TextStreamer } from './node_modules/@huggingface/transformers/dist/transformers.min.js';
import { checkPrompts } from './check.js';

const here = new URL('./', self.location.href).href;
Object.assign(env, { allowRemoteModels: false, allowLocalModels: true });
// A path and not an address: transformers.js 4.3.2 finds no tokenizer below an address.
env.localModelPath = './';
// Else onnxruntime-web comes from a CDN.
env.backends.onnx.wasm.wasmPaths = `${here}node_modules/onnxruntime-web/dist/`;

const tell = (kind, words) => postMessage({ kind, words });
const loaded = {}; // device -> the promise of a model

async function load(device) {
  tell('state', 'Loading …'); // which file and precision, the bundle's config.json says
  const generate = await pipeline('text-generation', 'bundle', { device });
  if (device === 'webgpu') await checkPrompts(generate.model, Tensor);
  return generate;
}

async function answer({ words, device }) {
  const generate = await (loaded[device] ??= load(device));
  let [count, start] = [0, performance.now()];
  const streamer = new TextStreamer(generate.tokenizer, {
    skip_prompt: true,
    skip_special_tokens: true,
    callback_function: (text) => tell('text', text),
    token_callback_function: () => { count += 1; },
  });
  tell('state', 'Writing …');
  await generate([{ role: 'user', content: words }], { max_new_tokens: 96, streamer });
  const rate = count / ((performance.now() - start) / 1000);
  tell('done', `${count} tokens on ${device}, ${rate.toFixed(1)} a second`);
}

self.onmessage = ({ data }) => answer(data).catch((error) => {
  delete loaded[data.device];
  tell('done', `This did not work: ${error.message}`);
});
