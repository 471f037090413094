"""python -m dist_trainer"""

from dist_trainer.cli import main

main()
