"""The whole loop on the reference family: measure, plan, run, compare."""

import s2d

profile = s2d.profile("ref-target-16", draft="ref-draft", num_prompts=4, max_new_tokens=48, budget_s=10)
plan = s2d.plan(trace=profile.trace, profiles=profile.latency_paths)
print(plan)

report = s2d.run(plan, check=True, num_prompts=2, max_new_tokens=48)
print(report)
print(s2d.compare(plan, report, profiles=profile.latency_paths))
