#!/bin/bash
# Your own images of one subject, without pairs, in five commands: pack, look, train, generate, plot.
#     launch/own_images.sh                                                  thirty drawings of a robot, on the miniature
#     IMAGES=my_images OUT=outputs/mine TEXT="..." launch/own_images.sh     yours; settings of train.py may follow
#     IMAGES=my_images PACK="--caption vlm" launch/own_images.sh            yours without captions: the configured agent writes them
# PACK holds flags of packing, such as --agents, --caption-from-name or --trigger. docs/data.md.
set -euo pipefail
images=${IMAGES:-assets/own_images} out=${OUT:-outputs/own_images}
[[ -d $images ]] || { echo "IMAGES=$images is no folder: give the one that holds your images" >&2; exit 2; }
text=${TEXT:-this character with happy eyes and a smile, large, tilted to the left, on a blue background}
reference=${REFERENCE:-$(find "$images" -name '*.png' -o -name '*.jpg' | sort | head -n 1)}
read -r -a pack <<< "--all-pairs --overwrite ${PACK:-}"

python -m dsd_lightning.packing "$images" "$out/shards" "${pack[@]}"
python -m dsd_lightning.shards view "$out/shards" --out "$out/pairs.html"
python train.py data=shards data.root="$out/shards" hydra.run.dir="$out/run" ckpt=auto trainer.max_steps=150 \
    trainer.val_check_interval=75 callbacks.samples.every_n_steps=75 callbacks.probe=null "$@"
python generate.py --run "$out/run" --image_path "$reference" --text "$text" --seed 0 --disable_gemini_prompt \
    --output_path "$out/generated.png"
python -m dsd_lightning.runs plot "$out/run"
