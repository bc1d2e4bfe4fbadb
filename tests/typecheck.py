"""How annotations are checked while the tests run: an int where a float is asked for is fine."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
