"""Decode with the reference family: the same text, plainly and with a draft."""

import s2d

model = s2d.load("ref-target-16", draft="ref-draft")
policy = s2d.Policy(exits=(4,), tokens=4)
plain = model.generate("def main(", max_new_tokens=48)
fast = model.generate("def main(", policy=policy, max_new_tokens=48)
assert fast.text == plain.text, "speculative decoding is lossless"
print(fast.text)
print(f"{fast.num_rounds} passes of the target instead of {plain.num_rounds}")
