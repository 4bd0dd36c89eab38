"""`python -m aliasmilter` is `alias-milter`."""

from aliasmilter.cli import main

main()
