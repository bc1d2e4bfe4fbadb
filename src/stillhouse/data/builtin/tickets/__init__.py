"""The ticket example: customer messages to a shop for gadgets, to be sorted by intent.

train.csv, dev.csv and test.csv hold hand-written messages with the columns text and label. The
eight labels, and what each is for:

- billing: what was charged or is to be paid, how, and the papers that go with it
- refund: money to be paid back, and returning goods to that end
- delivery: where a parcel is, when and where it is to arrive, and what was missing from it
- account_access: signing in, and the security, details and existence of an account
- technical_problem: a device, the app or the site does not do what it should
- cancellation: to end a subscription, or stop an order that has not been sent
- product_question: what a product or plan can do, mostly before it is bought
- complaint: how the customer was treated by staff or support, whatever the matter was
"""

from pathlib import Path

from stillhouse.data.builtin.tickets.compose import INTENTS, unlabelled

__all__ = ["INTENTS", "folder", "unlabelled"]


def folder() -> Path:
    """The folder with train.csv, dev.csv and test.csv."""
    return Path(__file__).resolve().parent
