"""A tiny pair with captured passes, and the texts that it generates."""

from perfmodel.models.dtypes import Dtype
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY, Sampling
from s2d.decoding.generate import Session, Settings
from s2d.loading.load_model import LoadedModel
from tests.s2d.model.test_cuda_graphs import graphed
from tests.stubs import TinySpec, loaded, tiny_llama

EXITS = (1, 2, 4)
MAX_TOKENS = 60
PROMPTS = ((1, 2, 3, 4, 5), (7, 8, 9, 7, 8, 9, 7))
NEW_TOKENS = 20
GATED = Policy(exits=EXITS, thresholds=(0.6, 0.6), tokens=3)
DEEPEST = Policy(exits=EXITS[-1:], tokens=3)


def target_on(device: str = "cuda", dtype: Dtype = "fp32") -> LoadedModel:
    return graphed(loaded(tiny_llama(TinySpec()), EXITS, dtype, device))


def draft_on(device: str = "cuda", dtype: Dtype = "fp32") -> LoadedModel:
    return graphed(loaded(tiny_llama(TinySpec(num_layers=EXITS[-1])), EXITS, dtype, device))


def settings_of(policy: Policy | None, sampling: Sampling = GREEDY) -> Settings:
    return Settings(policy=policy, sampling=sampling, max_new_tokens=NEW_TOKENS, eos_token_id=None)


def texts_of(session: Session, policy: Policy | None, sampling: Sampling = GREEDY) -> list[tuple[int, ...]]:
    return [session.generate(prompt, settings_of(policy, sampling)).tokens for prompt in PROMPTS]


def texts_on_the_cpu(policy: Policy | None = None, sampling: Sampling = GREEDY) -> list[tuple[int, ...]]:
    """Texts of eager passes."""
    target = loaded(tiny_llama(TinySpec()), EXITS, "fp32", "cpu")
    return texts_of(Session(target, None, MAX_TOKENS), policy, sampling)
