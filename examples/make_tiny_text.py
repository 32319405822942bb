#!/usr/bin/env python3
"""Writes tiny.txt, the text of tiny.yaml: small tales of a mill from a grammar, the same bytes each time.

  ./make_tiny_text.py > tiny.txt
"""

PEOPLE = ["the king", "the miller", "the old woman", "the sailor", "the child", "the king's son", "the baker"]
PLACES = ["by the sea", "at the mill", "in the town", "on the hill", "near the river", "under the old bridge"]
TIMES = ["In the morning", "At noon", "In the evening", "Before the rain", "After the harvest", "Every spring"]
DEEDS = ["ground the corn", "mended the wheel", "counted the sacks", "sang to the water", "lit a lamp",
         "carried bread", "watched the stars", "opened the gate"]
ANSWERS = ["The wheel turns as long as the water comes.", "No grain is lost on the way to the sea.",
           "What one hand leaves, another hand takes up.", "Count the sacks again, and the sum is the same.",
           "A stone that rests grinds no flour.", "Many small streams make one river."]
ENDS = ["And so it was.", "Then all was quiet.", "They laughed and went home.", "Nobody knew why.",
        "The water went on.", "It was a good day."]


class Chance:
    """Knuth's MMIX generator, so that no library's generator decides the bytes."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n

    def of(self, words):
        return words[self.below(len(words))]


def capital(text):
    return text[0].upper() + text[1:]


def tale(chance):
    one, other = chance.of(PEOPLE), chance.of(PEOPLE)
    lines = [f"{chance.of(TIMES)} {one} {chance.of(DEEDS)} {chance.of(PLACES)}."]
    for _ in range(1 + chance.below(3)):
        turn = chance.below(4)
        if turn == 0:
            lines.append(f"{capital(other)} asked: Who {chance.of(DEEDS)}? {capital(one)} did.")
        elif turn == 1:
            lines.append(f'"{chance.of(ANSWERS)}" said {other}.')
        elif turn == 2:
            lines.append(f"{capital(other)} {chance.of(DEEDS)} and {chance.of(DEEDS)} {chance.of(PLACES)}.")
        else:
            lines.append(f"There were {2 + chance.below(98)} sacks {chance.of(PLACES)}.")
    lines.append(chance.of(ENDS))
    return " ".join(lines)


def main():
    chance = Chance(20261124)
    text = ""
    while len(text) < 30000:
        text += tale(chance) + "\n\n"
    print(text.rstrip("\n"))


main()
