"""Answer prompts of different lengths together: python samples/batch.py BUNDLE PROMPT..."""

import sys

import lfm2_deploy

if len(sys.argv) < 3:
    sys.exit(__doc__)
bundle, *prompts = sys.argv[1:]
model = lfm2_deploy.load(bundle)
for prompt, answer in zip(prompts, model.generate_batch(prompts, max_new_tokens=30), strict=True):
    print(f"{prompt}{answer.text}\n[{len(answer.token_ids)} tokens, {answer.finish_reason}]\n")
