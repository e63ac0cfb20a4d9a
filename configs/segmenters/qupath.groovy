// Cells of a tile by QuPath's cell detection: QuPath script --image=IMAGE --args=LABELS qupath.groovy
//
// Follows the scripting interface of QuPath 0.4 (LabeledImageServer with instance labels). The last
// channel is nuclei; the threshold is a share of 65535, which is the upper bound of the slide's
// normalisation, so that it means the same in every tile. Up to 65535 cells fit into a tile.
import qupath.lib.common.ColorTools
import qupath.lib.images.servers.LabeledImageServer

def threshold = 0.2 * 65535

setImageType('FLUORESCENCE')
createFullImageAnnotation(true)
def nuclei = getCurrentServer().getMetadata().getChannels()[-1].getName()
runPlugin('qupath.imagej.detect.cells.WatershedCellDetection', """{
    "detectionImage": "${nuclei}", "requestedPixelSizeMicrons": 0.5,
    "backgroundRadiusMicrons": 0.0, "medianRadiusMicrons": 0.0, "sigmaMicrons": 1.5,
    "minAreaMicrons": 10.0, "maxAreaMicrons": 400.0, "threshold": ${threshold},
    "watershedPostProcess": true, "cellExpansionMicrons": 3.0, "includeNuclei": true,
    "smoothBoundaries": true, "makeMeasurements": false
}""")

def labels = new LabeledImageServer.Builder(getCurrentImageData())
    .backgroundLabel(0, ColorTools.BLACK)
    .useCells()
    .useInstanceLabels()
    .downsample(1)
    .multichannelOutput(false)
    .build()
writeImage(labels, args[0])
