"""What is asked: a question of 26 described options, and inputs of 25 words, none of which comes twice."""

import random
from collections.abc import Iterator
from typing import Any

QUESTION = "Which team of the bank should handle this message of a customer?"

OPTIONS = {
    "lost_card": "the customer's card was lost, stolen or kept by a machine, and has to be blocked or replaced",
    "card_delivery": "a new card was ordered and has not arrived, or its delivery address has to be changed",
    "card_declined": "a payment with a card was refused in a shop, online or at a machine",
    "pin": "the customer forgot, blocked or wants to change the secret number of a card",
    "contactless": "paying without contact or with a phone or watch does not work",
    "cash_withdrawal": "money from a machine was wrong, missing, charged twice or cost a fee",
    "exchange_rate": "the rate or fee of a payment in another currency is unclear or seems wrong",
    "transfer_failed": "a transfer to another account was refused, returned or never left",
    "transfer_pending": "a transfer was sent and has not yet reached the account of the receiver",
    "incoming_payment": "money that somebody sent to the customer, such as a salary, has not arrived",
    "direct_debit": "a company collected money that the customer does not know or no longer owes",
    "standing_order": "a regular payment has to be set up, changed, paused or ended",
    "refund": "a shop promised to give money back and it is not on the account",
    "top_up": "adding money to the account by card, transfer, cash or cheque does not work",
    "fraud": "somebody else used the account or card, or tried to trick the customer into paying",
    "login": "the customer cannot sign in, lost the device, or does not receive the code",
    "identity_check": "documents to prove who the customer is were refused, are missing or take too long",
    "personal_data": "a name, address, phone number or mail address has to be corrected",
    "account_closing": "the customer wants to close an account or to move it to another bank",
    "account_opening": "a new account, a joint account or an account for a child is wanted",
    "fees": "a monthly charge, its amount or the date of its collection is questioned",
    "statement": "a statement, a certificate for the tax office or a receipt is needed",
    "loan": "a question about a loan, its rate, its payments or paying it back early",
    "savings": "a question about interest, a savings account or money that is bound for a time",
    "app_fault": "the application shows an error, is slow or misses a function that was there",
    "complaint": "the customer is unhappy with the bank itself, its staff or an earlier answer",
}

_TEXT = (
    "my card was in the machine when it stopped and nobody could tell me what happened with the money that i sent to "
    "another account last week because the payment is still shown as pending although the shop says they never got it "
    "so please help me find out who took two hundred euros from savings yesterday morning before i close everything "
    "and why your app keeps asking for a code which does not arrive on the new phone after changing address or name"
)
_WORDS = _TEXT.split()


def inputs(seed: str, count: int, words: int = 25) -> Iterator[str]:
    """Messages that differ from all others from their first words on, for every `seed`."""
    source = random.Random(seed)
    for _ in range(count):
        yield " ".join(source.choices(_WORDS, k=words))


def ad_hoc(seed: str, count: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Questions that nobody asked before: other words, other names and other descriptions in each."""
    source = random.Random(seed)
    for _ in range(count):
        names = [f"{source.choice(_WORDS)}_{source.choice(_WORDS)}_{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
        described = {name: " ".join(source.choices(_WORDS, k=15)) for name in names}
        yield " ".join(source.choices(_WORDS, k=12)) + "?", described


def decide(task: str, text: str) -> dict[str, Any]:
    """A body of `POST /decide`."""
    return {"task": task, "input": text}


def systemone(model: str, question: str, options: dict[str, str], state: str) -> dict[str, Any]:
    """A body of `POST /v1/systemone`, for both servers."""
    choice = {"type": "choice", "instructions": question, "criteria": options}
    return {"model": model, "state": state, "questions": {"team": choice}}
