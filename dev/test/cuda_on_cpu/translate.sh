#!/usr/bin/env bash
#
# dev/test/cuda_on_cpu/translate.sh FILE > COPY: rewrites what a C++ compiler does not understand of
# our CUDA code, and nothing else. Every line keeps its number.
#
#   kernel<T><<<grid, block>>>(x, n);              CPU_LAUNCH((grid, block), kernel<T>(x, n));
#   extern __shared__ T name[];                    T* name = (T*)dynamic_shared;
#   asm("a.b %0, {%1, 2};" : "=r"(y) : "r"(x));    { ptx_a_b((y), (x), 2); }
#
# A block of PTX instructions becomes a block of calls, with the operands in the order in which the
# instruction has them; ptx.h defines the functions. ".reg .b8 a;" declares: ptx_reg_b8 a;
set -euo pipefail

echo "#line 1 \"$1\""
exec perl -0777 -pe '
    s{(\w+(?:<[^<>;]*>)?)<<<(.*?)>>>(\(.*?\));}{CPU_LAUNCH(($2), $1$3);}gs;
    s{extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];}{$1* $2 = ($1*)dynamic_shared;}g;
    s{\basm (?:\s volatile)? \( ((?:\s*"[^"]*")+) (.*?) \);(?=\n)}{
        my ($ptx, $rest) = ($1, $2);
        my $lines = "\n" x (($ptx . $rest) =~ tr/\n//);
        my @operands = $rest =~ /"[=+]?[a-z]"(\((?:[^()]++|(?1))*\))/g;     # (expression)
        s/\s+/ /g for @operands;
        $ptx =~ s/"\s*"|\\[nt]|["{}\[\]]//g;
        $ptx =~ s/%(\d)/$operands[$1]/g;
        my $calls = "";
        for (grep { /\S/ } split /;/, $ptx) {
            my ($opcode, $with) = /^\s*([\w.:]+(?: \.\w+)?)\s*(.*?)\s*$/;
            my $name = "ptx_" . $opcode =~ s/^\.//r =~ s/[ .:]+/_/gr;
            $calls .= $opcode =~ /^\./ ? "$name $with; " : "$name($with); ";
        }
        "{ $calls}$lines"
    }gsxe;
' "$1"
