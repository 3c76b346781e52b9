"""Make a nested draft from the first layers of a target, on a few lines of text: seconds, not a useful draft."""

from pathlib import Path

import s2d

Path("lines.txt").write_text(
    "\n".join(f"def function_{number}(value):\n    return value + {number}\n" for number in range(400))
)
trained = s2d.train_draft(
    "ref-target-16", exits=(2, 4), text="lines.txt", output="my-draft", steps=4, batch_sequences=2, sequence_tokens=64
)
print(trained)
print(s2d.load("ref-target-16", draft="my-draft").generate("def ", policy=s2d.Policy(exits=(2,), tokens=2), max_new_tokens=16))
