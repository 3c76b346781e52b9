"""Plan for a target and a device that are not at hand: which configuration, how fast, how sure?"""

import s2d

plan = s2d.plan("llama-70b", device="h100")
print(plan)

print(f"\n{plan.speedup.value:.2f} times plain decoding, 90 % interval {plan.speedup.low:.2f} to {plan.speedup.high:.2f}")
plan.save("plan.json")
