#!/bin/bash
# FLUX.1-dev on your own images of several subjects, in five commands: pack, encode, plan, train, generate.
#     EXPERIMENT=flux_24gb IMAGES=my_images OUT=outputs/mine TEXT="this character at the sea" launch/train_flux.sh
# EXPERIMENT is flux_24gb, flux_48gb or flux_80gb for one GPU of that size, dsd_paper for eight; settings of train.py may follow.
# IMAGES has a folder for each subject. PACK holds flags of packing, such as "--caption vlm" where captions are missing; BASE holds
# settings of the base, for every command that reads it. docs/train_flux.md.
set -euo pipefail
experiment=${EXPERIMENT:-flux_24gb} images=${IMAGES:?give IMAGES=FOLDER, with a folder for each subject} out=${OUT:-outputs/flux}
text=${TEXT:-this character at the sea, in the evening}
reference=${REFERENCE:-$(find "$images" -name '*.png' -o -name '*.jpg' | sort | head -n 1)}
read -r -a base <<< "base=flux_dev ${BASE:-}"
read -r -a pack <<< "--all-pairs --overwrite ${PACK:-}"
settings=(arch=parallel task=identity "experiment=$experiment" "${base[@]}" "data.root=$out/encoded" "$@")

python -m dsd_lightning.packing "$images" "$out/images" "${pack[@]}"
python -m datamodules.commands.encode_shards "${base[@]}" root="$out/images" out="$out/encoded"
python train.py "${settings[@]}" plan=true
python train.py "${settings[@]}" hydra.run.dir="$out/run"
python generate.py --run "$out/run" --image_path "$reference" --text "$text" --seed 0 --disable_gemini_prompt \
    --output_path "$out/generated.png"
