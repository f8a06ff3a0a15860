#!/usr/bin/env bash
# The main job: regions, training, evaluation; makes its own virtual environment if none is active.
#     bash train_scripts.sh                       drawn faces, on a CPU, nothing to download -> runs/drawn
#     bash train_scripts.sh drawn --seed 1        arguments after the name go to attention.run_attention
#     bash train_scripts.sh faces                 real-looking faces, on a CPU, after python -m attention.download faces mesh
#     bash train_scripts.sh ffhq                  real faces, one GPU, published settings    -> runs/ffhq
#     bash train_scripts.sh ffhq-8gpu             the same on eight GPUs, one prompt each    -> runs/ffhq-8gpu
#     bash train_scripts.sh released              the authors' run to the letter, eight GPUs -> runs/released
#     bash train_scripts.sh benchmark             ours against other methods on drawn faces  -> benchmarks/results
# After an interruption, the same command with --resume auto at its end goes on from the last checkpoint; with --overwrite
# it replaces a run that is there already. A stopped step ends the job, with exit code 128 + the signal's number.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

name=drawn
if [[ $# -gt 0 && "$1" != -* ]]; then             # options without a name mean drawn
    name="$1"
    shift
fi
domain=drawn
run="runs/$name"

resumes=no begins=no needs_vgg=yes
both=()                                           # flags that mean the same to regions and training
words=("$@")
for ((i = 0; i < $#; i++)); do
    flag="${words[i]%%=*}" value="${words[i + 1]:-}"
    [[ "${words[i]}" == *=* ]] && value="${words[i]#*=}"
    case "$flag" in
        -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
        --overwrite) both+=(--overwrite) ;;
        --run) run="$value" ;;
        --ckpt | --attention_layer | --cluster_num | --stylegan_size | --channel_multiplier | --device | --recipe)
            both+=("$flag" "$value") ;;
        --resume) resumes=yes ;;
        --init) begins=yes ;;                     # it brings its regions
        --lambda_id) [[ "$value" =~ ^0*\.?0*$ ]] && needs_vgg=no ;;
    esac
done
usual() {                                         # usual FLAG VALUE: print both, if the call itself does not give the flag
    [[ " ${words[*]-} " == *" $1"[\ =]* ]] || echo "$1 $2"
}

weights="${WHERE2EDIT_WEIGHTS:-pretrained_models}"
need() {                                          # need FILE ADDRESS: name the file if it is not there
    (cd "$here" && [[ -s "$weights/$1" ]]) && return
    echo "$weights/$1 is missing: get it from $2, or with: python -m attention.download $1" >&2
    complete=no
}

settings=()                                       # of both steps; drawn and faces take theirs from attention/worlds/*/world.py
training=()                                       # of the second step alone
case "$name" in
    drawn | benchmark) ;;
    faces)
        domain=faces
        complete=yes
        need mobilestylegan-ffhq.safetensors "the package random-face"
        need mediapipe-face-mesh.zip "the package mediapipe"            # the measures' own
        [[ $complete == yes ]] || exit 2
        ;;
    ffhq | ffhq-8gpu | released)
        domain=ffhq
        complete=yes
        need stylegan2-ffhq-config-f.pt "https://drive.google.com/file/d/1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT"
        need ViT-B-32.pt "https://openaipublic.azureedge.net/clip/models/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt"
        [[ $needs_vgg == no ]] || need vgg16-397923af.pth "https://download.pytorch.org/models/vgg16-397923af.pth"
        [[ $complete == yes ]] || exit 2
        # The published layer and number of regions. The rest of the published settings are the general defaults
        # (attention/config.py), and the size of 1024 px is read from the weights. The published run gave 8 GPUs one
        # prompt each; one GPU has a batch of 8.
        settings=($(usual --attention_layer 13) $(usual --cluster_num 20))
        [[ $name == released ]] && settings+=($(usual --recipe released))
        [[ $name == ffhq ]] || training=(--multiprocessing-distributed $(usual --gpu_id 0,1,2,3,4,5,6,7) $(usual --batch_size 1))
        ;;
    *)
        echo "train_scripts.sh knows drawn (the default), faces, ffhq, ffhq-8gpu, released and benchmark, not '$name'" >&2
        exit 2
        ;;
esac

source "$here/.ci/environment.sh"                 # from here on, paths count from the repository root

# Each step has a process group of its own, and a signal to this script is handed on to it once: a scheduler may tell the
# script alone, a terminal all of them.
set -m
child= stopped=0
stop() {                                          # stop SIGNAL CODE
    stopped="$2"
    [[ -z "$child" ]] || kill -s "$1" -- "-$child" 2>/dev/null || true
}
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM
trap 'stop USR1 138' USR1
step() {                                          # step COMMAND...: run it, and end as it ended if it failed
    local code=0
    "$@" &
    child=$!
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do        # a signal ends the wait and not the step
        wait "$child" || code=$?
    done
    child=
    [[ $stopped -eq 0 ]] || exit "$stopped"
    [[ $code -eq 0 ]] || exit "$code"
}

if [[ $name == benchmark ]]; then                 # every method is trained already (attention.baselines.fit)
    step python -m benchmarks.compare "$@"
    exit
fi
settings=(--domain "$domain" --run "$run" ${settings[@]+"${settings[@]}"})   # bash before 4.4: an empty array is unset
if [[ $begins == no && ! ($resumes == yes && -e "$run/regions.safetensors") ]]; then     # a run that goes on keeps its regions
    step python -m attention.clustering_feature "${settings[@]}" ${both[@]+"${both[@]}"}
fi
step python -m attention.run_attention "${settings[@]}" ${training[@]+"${training[@]}"} "$@"
case "$name" in                                   # the measures need faces whose true parts are known
    drawn) step python -m attention.evaluate --run "$run" --strengths 0.05,0.1,0.2 ;;
    faces)
        step python -m attention.calibrate --run "$run" --precision bf16
        step python -m attention.evaluate --run "$run" --precision bf16
        ;;
esac
