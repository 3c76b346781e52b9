"""What `s2d-run` reads before anything heavy is imported: the plan and the prompts."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from perfmodel.core.errors import UserInputError
from perfmodel.core.files import Stored
from perfmodel.results.plan import PLAN_FILE, Plan
from s2d.loading.model_folder import FAMILY_PROMPTS, check_model_names
from s2d.prompt_files.choose import chosen_prompts
from s2d.prompt_files.given import given_prompts
from s2d.prompt_files.read_as import read_as
from s2d.prompts.conversation import Prompt, check_texts
from s2d.running.check_plan import check_head, check_num_devices, check_plain_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """A plan that can be run here, as far as its file tells, and the prompts to run it on."""

    plan: Stored[Plan]
    prompts: tuple[Prompt, ...]


def read_run_inputs(args: argparse.Namespace) -> RunInputs:
    """Read the plan and the prompts that the flags name.

    Raises:
        UserInputError: no plan is given, a file cannot be read, or there is no such model.
        Mismatch: the plan is for an assumed draft, a quantised target or another number of devices.
    """
    if args.plan is None:
        raise UserInputError("nothing to run: give a plan with --plan FILE; s2d-plan makes one")
    plan = PLAN_FILE.read(args.plan)
    check_head(args.plan, plan.record)
    check_plain_weights(args.plan, plan.record)
    check_num_devices(args.plan, plan.record)
    check_model_names(args.target, args.draft)
    return RunInputs(plan=plan, prompts=tuple(_prompts(args)))


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    """The one prompt given, or some of a file's."""
    if args.prompt is not None:
        return [Prompt(name="--prompt", category="given", text=args.prompt)]
    given = given_prompts(args.prompts, read_as(args, "prompt"), FAMILY_PROMPTS, first_turns=not args.chat)
    chosen = chosen_prompts(given, args.split, args.num_prompts)
    if not args.chat:
        check_texts(chosen)
    return chosen
