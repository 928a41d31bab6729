// The page's side: it sends a message to the worker and shows what comes back.
const form = document.querySelector('form');
const [answer, state] = ['#answer', '#state'].map((name) => document.querySelector(name));
// A worker, so that the page stays alive while the model computes.
const worker = new Worker('worker.js', { type: 'module' });

function finish(words) {
  state.textContent = words;
  form.querySelector('button').disabled = false;
}

form.onsubmit = (event) => {
  event.preventDefault();
  form.querySelector('button').disabled = true;
  answer.textContent = '';
  worker.postMessage(Object.fromEntries(new FormData(form)));
};

worker.onmessage = ({ data: { kind, words } }) => {
  if (kind === 'text') answer.textContent += words;
  else if (kind === 'done') finish(words);
  else state.textContent = words;
};
worker.onerror = (event) => {
  event.preventDefault();
  finish(event.message);
};
