#!/bin/bash
# Pairs that a teacher generates, in five commands: plan, grids, judge, pack, look. Then a model is trained on them.
#     launch/data_run.sh                                                                    the miniature, offline
#     OUT=pairs PAIRS=400000 TRAIN=plan=true launch/data_run.sh agents=paper captions=files captions.path=laion.parquet \
#         agents.budget.budget_usd=12000
# PAIRS are training pairs wanted; settings of distill.py follow, of which agents.budget.budget_usd (10) bounds what is spent. TRAIN holds
# settings of train.py; TRAIN=plan=true plans the training alone. The same command goes on where it was stopped. docs/distill.md.
set -euo pipefail
out=${OUT:-outputs/data_run} pairs=${PAIRS:-600}
few="trainer.max_steps=300 trainer.val_check_interval=150 callbacks.samples.every_n_steps=150 callbacks.probe=null"
read -r -a settings <<< "${TRAIN:-$few}"
run=("out=$out" "pairs=$pairs" "$@")

python distill.py "${run[@]}" dry_run=true
python distill.py "${run[@]}" until=split
python distill.py "${run[@]}" until=verify
python distill.py "${run[@]}"
[[ -e "$out/labels/human.csv" ]] || python -m dsd_lightning.distillation.labels "$out"

# A run of few pairs may have no subject to spare for validation; then training sets some of its pairs aside.
validation="$out/shards/validation" data=("data.root=$out/shards/train")
if [[ -d "$validation" ]]; then data+=("data.datamodule.source.validation_root=$validation"); fi
python train.py data=shards "${data[@]}" hydra.run.dir="$out/run" ckpt=auto "${settings[@]}"
