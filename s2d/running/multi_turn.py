"""From one turn of a conversation to the next: what the model wrote becomes what the assistant said."""

from perfmodel.core.errors import UserInputError
from s2d.decoding.generate import Generation
from s2d.decoding.pair import EncodedPrompt, Pair, encode_turn
from s2d.prompts.text import continuation_text
from s2d.running.run_report import RunSettings


class MultiTurn:
    """Goes on with conversations as they are answered, and keeps account of those that could not go on.

    Args:
        pair: whose answers they are.
        request: how long these may be, and what ends them.
    """

    def __init__(self, pair: Pair, request: RunSettings) -> None:
        self._pair = pair
        self._request = request
        self.cut_short: list[str] = []
        """Why conversations ended before their last turn: they outgrew the context, or the template refused an answer."""

    def on_text(self, prompt: EncodedPrompt, generation: Generation) -> EncodedPrompt | None:
        """The turn that follows a finished text; see `after`."""
        return self.after(prompt, continuation_text(self._pair.tokenizer, prompt.token_ids, generation.tokens))

    def after(self, prompt: EncodedPrompt, text: str) -> EncodedPrompt | None:
        """The turn that follows what was written after a prompt; None where none does, or none that can be decoded.

        A stop string ends an answer and is none of it.
        """
        stop = self._request.stop
        following = prompt.conversation and prompt.conversation.answered(stop.before(text) if stop else text)
        if following is None:
            return None
        try:
            return encode_turn(self._pair, following, self._request.max_new_tokens, self._request.special_tokens)
        except UserInputError as err:
            self.cut_short.append(f"a conversation is cut short: {err}")
            return None
