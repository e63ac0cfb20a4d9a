// An example: one batch of slides. `nextflow run main.nf --sheet samples.csv -profile docker`
include { DENSEBATCH_SEGMENT } from './densebatch/segment/main'

workflow {
    // A sheet names slides relative to its folder; in the task all lie beside it.
    sheet = file(params.sheet, checkIfExists: true)
    rows = sheet.splitCsv(header: true)
    slides = rows.collect { row -> file("${sheet.parent}/${row.slide}", checkIfExists: true) }
    columns = rows[0].keySet().toList()
    local = Channel
        .of(columns.join(','), *rows.collect { row ->
            columns.collect { column ->
                def value = column == 'slide' ? file(row.slide).name : (row[column] ?: '')
                value.contains(',') ? "\"${value}\"" : value
            }.join(',')
        })
        .collectFile(name: 'sheet.csv', newLine: true, sort: false)

    DENSEBATCH_SEGMENT(local.map { csv -> [ [ id: sheet.baseName ], csv, slides ] })
}
