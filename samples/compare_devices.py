"""Are two bundles, or devices, as good? python samples/compare_devices.py demo-int8 demo.

Or one bundle on two devices, as in `BUNDLE@npu BUNDLE@cpu`. The last is what the others are held
against.
"""

import sys

import lfm2_deploy
from lfm2_deploy.compare.run import Settings

if len(sys.argv) < 3:
    sys.exit(__doc__)
*subjects, reference = sys.argv[1:]
try:
    report = lfm2_deploy.compare_models(
        subjects, reference=reference, settings=Settings(chunks=4, cost=False)
    )
except lfm2_deploy.Lfm2DeployError as error:
    sys.exit(str(error))
print(f"held against {reference}, at {report.protocol.positions} places of a text:")
for subject in report.subjects:
    if subject.scores is None:
        print(f"{subject.info.given}: {subject.failure}")
        continue
    scores = subject.scores
    print(f"{subject.info.given}: on {subject.info.device}")
    print(f"  the same next token at {scores.same_top.value:.1%}")
    print(f"  KL divergence {scores.divergence.mean.value:.5f} nats")
