"""Generate from a bundle: python samples/generate.py BUNDLE "Once upon a time"."""

import sys

import lfm2_deploy

if len(sys.argv) != 3:
    sys.exit(__doc__)
bundle, prompt = sys.argv[1:]
model = lfm2_deploy.load(bundle)
answer = model.generate(prompt, max_new_tokens=60, seed=1)
print(prompt + answer.text)
