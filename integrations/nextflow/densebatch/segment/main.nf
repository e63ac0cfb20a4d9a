process DENSEBATCH_SEGMENT {
    tag "$meta.id"
    label 'process_high'

    conda "${moduleDir}/environment.yml"
    container "${ task.accelerator ? 'densebatch:cuda' : 'densebatch:cpu' }"

    input:
    tuple val(meta), path(sheet), path(slides)

    output:
    tuple val(meta), path("${prefix}/*/segmentation.ome.zarr"), emit: labels
    tuple val(meta), path("${prefix}/*/cells.parquet")        , emit: table
    tuple val(meta), path("${prefix}/*/run.json")             , emit: record
    tuple val(meta), path("${prefix}/cohort.json")            , emit: cohort
    path "versions.yml"                                       , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def device = task.accelerator ? 'cuda' : 'cpu'
    // Exit code 3: some samples are partial or failed, which cohort.json tells. The others are done.
    def partial = task.ext.partial ? '|| [ $? -eq 3 ]' : ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    densebatch segment \\
        --sheet $sheet \\
        $prefix \\
        --workers $task.cpus \\
        --device $device \\
        $args \\
        $partial

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        densebatch: \$(densebatch --version)
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir -p $prefix/sample/segmentation.ome.zarr
    touch $prefix/sample/segmentation.ome.zarr/zarr.json
    touch $prefix/sample/cells.parquet
    echo '{}' > $prefix/sample/run.json
    echo '{"samples": []}' > $prefix/cohort.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        densebatch: \$(densebatch --version)
    END_VERSIONS
    """
}
