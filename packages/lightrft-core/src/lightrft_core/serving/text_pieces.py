"""Tokens as text while they come: characters that span tokens are held back, and so is what may become a stop text."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
HALF = "\ufffd"  # what a part of a character decodes to


class TextPieces:
    """One completion's text; the pieces joined are the text up to the first of the `stops`, which itself is left out
    unless `keep_stop`."""

    def __init__(self, decode: Decode, stops: Sequence[str] = (), *, keep_stop: bool = False) -> None:
        self._decode, self._stops, self._keep_stop = decode, tuple(stops), keep_stop
        self._token_ids: list[int] = []
        self._start = self._read = 0  # tokens that give the text its context, and those whose text is known
        self._text, self._sent = "", 0

    def push(self, token_ids: Sequence[int], *, is_last: bool) -> str:
        """What these tokens make certain; with the last ones, all that is left."""
        self._token_ids += token_ids
        known = self._decode(self._token_ids[self._start : self._read])
        now = self._decode(self._token_ids[self._start :])
        if is_last or not now.endswith(HALF):
            self._text += now[len(known) :]
            self._start, self._read = self._read, len(self._token_ids)
        end = self._end(is_last)
        piece = self._text[self._sent : end]
        self._sent = max(end, self._sent)
        return piece

    def _end(self, is_last: bool) -> int:
        found = [(place, stop) for stop in self._stops if (place := self._text.find(stop)) >= 0]
        if found:
            place, stop = min(found, key=lambda item: item[0] + len(item[1]))
            return place + len(stop) if self._keep_stop else place
        if is_last or not self._stops:
            return len(self._text)
        longest = max(map(len, self._stops)) - 1
        starts = range(max(len(self._text) - longest, 0), len(self._text))
        return next((at for at in starts if self._may_become_stop(self._text[at:])), len(self._text))

    def _may_become_stop(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self._stops)
