#!/bin/sh
# Runs while the image is built: a named volume that is mounted here belongs to the service's user, not to root.
set -eu
install -d -o bentoml -g bentoml -m 700 /home/bentoml/.saucier
