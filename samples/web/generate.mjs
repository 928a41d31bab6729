// A prompt's continuation in Node, by transformers.js.
//   node samples/web/generate.mjs BUNDLE "Once upon a time"
import { resolve } from 'node:path';

import { env, pipeline } from '@huggingface/transformers';

const [folder, prompt] = process.argv.slice(2);
if (!prompt) {
  console.error('usage: node samples/web/generate.mjs BUNDLE "Once upon a time"');
  process.exit(1);
}
env.allowRemoteModels = false; // a typing error is not looked for on the Hub
const generate = await pipeline('text-generation', resolve(folder));
const [{ generated_text }] = await generate(prompt, { max_new_tokens: 48, do_sample: false });
console.log(generated_text);
