"""`python -m macpo` is `macpo`."""

from macpo.cli import main

main()
