"""Texts for cross-entropy that are nobody's: `python -m saelake.ingest.laptop.texts` writes both files again.

passages.jsonl: openings of books and speeches whose copyright has ended, as running text (text).

questions.jsonl: what a small model should know, asked in the chat template (prompt), with the answer that is expected (text): a
small measure of what an edit leaves of the model's abilities. No training of this folder saw them.
"""

import json
from pathlib import Path

PASSAGES_FILE, QUESTIONS_FILE = (Path(__file__).parent / f"{name}.jsonl" for name in ("passages", "questions"))
PASSAGES = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or twice "
    "she had peeped into the book her sister was reading, but it had no pictures or conversations in it, and what is the "
    "use of a book, thought Alice, without pictures or conversations?",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife. "
    "However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is "
    "so well fixed in the minds of the surrounding families, that he is considered as the rightful property of some one or "
    "other of their daughters.",
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, and "
    "dedicated to the proposition that all men are created equal. Now we are engaged in a great civil war, testing whether "
    "that nation, or any nation so conceived and so dedicated, can long endure.",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was "
    "the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness, it "
    "was the spring of hope, it was the winter of despair.",
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and nothing "
    "particular to interest me on shore, I thought I would sail about a little and see the watery part of the world.",
    "There is grandeur in this view of life, with its several powers, having been originally breathed into a few forms or "
    "into one; and that, whilst this planet has gone cycling on according to the fixed law of gravity, from so simple a "
    "beginning endless forms most beautiful and most wonderful have been, and are being, evolved.",
    "When in the Course of human events, it becomes necessary for one people to dissolve the political bands which have "
    "connected them with another, a decent respect to the opinions of mankind requires that they should declare the causes "
    "which impel them to the separation.",
    "To Sherlock Holmes she is always the woman. I have seldom heard him mention her under any other name. In his eyes she "
    "eclipses and predominates the whole of her sex.",
    "I went to the woods because I wished to live deliberately, to front only the essential facts of life, and see if I "
    "could not learn what it had to teach, and not, when I came to die, discover that I had not lived.",
    "Shall I compare thee to a summer's day? Thou art more lovely and more temperate: rough winds do shake the darling buds "
    "of May, and summer's lease hath all too short a date.",
)
QUESTIONS = (
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("What is the capital of Spain?", "The capital of Spain is Madrid."),
    ("How many months are in a year?", "There are 12 months in a year."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many sides does a triangle have?", "A triangle has three sides."),
    ("What is two plus two?", "Two plus two is equal to four."),
    ("What is ten minus three?", "Ten minus three is equal to seven."),
    ("Who wrote Romeo and Juliet?", "Romeo and Juliet was written by William Shakespeare."),
    ("Who painted the Mona Lisa?", "The Mona Lisa was painted by Leonardo da Vinci."),
    ("What gas do plants take in?", "Plants take in carbon dioxide."),
    ("What is the chemical formula of water?", "The chemical formula of water is H2O."),
    ("Which planet is closest to the sun?", "The planet closest to the sun is Mercury."),
    ("Which ocean is the largest?", "The largest ocean is the Pacific Ocean."),
    ("What is the opposite of cold?", "The opposite of cold is hot."),
    ("What is the plural of mouse?", "The plural of mouse is mice."),
    ("What language is spoken in Brazil?", "The language spoken in Brazil is Portuguese."),
    ("What colour is a ripe banana?", "A ripe banana is yellow."),
    ("What do cows drink?", "Cows drink water."),
    ("Which animal barks?", "The animal that barks is a dog."),
)


def main() -> None:
    """Writes the files."""
    passages = [{"text": text} for text in PASSAGES]
    questions = [{"prompt": asked, "text": answer} for asked, answer in QUESTIONS]
    for file, rows in ((PASSAGES_FILE, passages), (QUESTIONS_FILE, questions)):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
