// Reads {"package": folder, "call": name, ...} from stdin and prints what greedy.mjs's function gives.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

import { CALLS } from './greedy.mjs';

const job = JSON.parse(readFileSync(0, 'utf8'));
// The package lies in a cache folder and not beside this file.
const require = createRequire(pathToFileURL(`${job.package}/package.json`));
const library = require('@huggingface/transformers');
library.env.allowRemoteModels = false;
process.stdout.write(`${JSON.stringify(await CALLS[job.call](library, job))}\n`);
