"""What lmd promises beside its equations."""

from noiseworks.kits.contracts import Contract

CONTRACT = Contract(
    good={"blend --first 0 --second 1 --weight 0.25": ()},
    bad=[
        ("blend --first 0 --second 1 --weight 2", "weight"),
        ("blend --first zero --second 1", "zero"),
    ],
)
