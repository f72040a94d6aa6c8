# Owns one cluster's folder: makes it, runs Postgres's tools in it one order at a time, and removes it at the end.
# Orders come on stdin, one a line; each is answered on stdout with the tool's exit status, its output being in `said`.
# The process that gives the orders holds the other end of stdin. However it ends, stdin ends with it, and the order
# under way is finished, Postgres is stopped and the folder removed: nothing is left to be cleaned up by anyone else.
# Arguments: the folder of Postgres's binaries, the folder to make the cluster's folder in.
bin=$1
trap '' HUP INT PIPE TERM
dir=$(mktemp -d "$2/utpg-XXXXXX") || exit 1
echo "$dir"

while read -r order argument; do
    case $order in
        init)
            "$bin/initdb" -D "$dir/data" -U undertone -A trust -E UTF8 --locale=C --no-sync --no-instructions
            ;;
        copy)
            "$bin/pg_basebackup" -d "$argument" -D "$dir/data" -R -X stream -c fast --no-sync
            ;;
        start)
            "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -t 60 -w \
                -o "-p $argument -k '$dir' -c listen_addresses=127.0.0.1" start
            ;;
        stop)
            "$bin/pg_ctl" -D "$dir/data" -t 60 -w -m "$argument" stop
            ;;
        promote)
            "$bin/pg_ctl" -D "$dir/data" -t 60 -w promote
            ;;
        *)
            echo "no such order: $order"
            false
            ;;
    esac >"$dir/said" 2>&1 </dev/null
    echo $?
done

"$bin/pg_ctl" -D "$dir/data" -t 60 -w -m immediate stop >/dev/null 2>&1 </dev/null
rm -rf "$dir"
