"""Plan for a target and a device that are not at hand: which configuration, how fast, how sure?"""

import s2d

plan = s2d.plan("llama-70b", device="h100")
print(plan)

speedup = plan.chosen.speedup.speedup
print(f"\n{speedup.value:.2f} times plain decoding, 90 % interval {speedup.low:.2f} to {speedup.high:.2f}")
plan.save("plan.json")
