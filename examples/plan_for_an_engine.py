"""Plan for engines that others serve with: what is a draft worth in each, and which files serve it?"""

from pathlib import Path
from tempfile import mkdtemp

import s2d

print(s2d.find_engine("vllm"))  # what it executes; explain() has its options and known failures, with sources

for name in ("vllm", "llama.cpp", "transformers"):  # by datasheet, without models and without engines
    plan = s2d.plan("llama-70b", device="h100", engine=name)
    print(f"{name}: {plan.policy.label if plan.policy else 'do not speculate'}, {plan.speedup.value:.2f} times plain decoding")

measured = s2d.profile("ref-target-16", draft="ref-draft", what="acceptance", num_prompts=4, max_new_tokens=48)
plan = s2d.plan(trace=measured.trace, device="h100", engine="vllm")  # profiles=, by s2d.profile_engine, replaces the datasheet
print(plan)

folder = Path(mkdtemp()) / "served"
print(s2d.export(plan, folder, target="ref-target-16", draft="ref-draft"))  # needs no engine; nothing is downloaded
print((folder / "serve.sh").read_text())
