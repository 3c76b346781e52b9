"""Price one round by hand: six draft tokens of a small model, then one verification by a large one."""

import s2d

target = s2d.latency("llama-2-70b", device="h100", num_devices=2)
draft = s2d.latency("s2d-vicuna-12", device="h100", num_devices=2)

context, tokens = 768, 6
draft_s = tokens * (draft.segment(stage=0, rows=1, context=context) + draft.exit_check(stage=0))
verify_s = target.verify(rows=tokens + 1, context=context)
plain_s = target.plain(context=context)
print(f"draft {draft_s * 1e3:.1f} ms, verify {verify_s * 1e3:.1f} ms, plain step {plain_s * 1e3:.1f} ms")
print(f"the round pays from {(draft_s + verify_s) / plain_s:.2f} tokens per round on")
