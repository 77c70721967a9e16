"""Public data sets whose layout this package reads: where they are, what they allow, how to cite.

Checksums are not published by the authors; each is one that independent downloaders report alike,
named beside it. Where an address is not lasting, or the authors want their page to be visited, the
set is fetched by hand.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublicSet:
    """A data set of others. Its licence binds whoever uses it."""

    name: str
    title: str
    homepage: str
    licence: str
    citation: str
    layout: str
    """As in ``datasets.load_categories``."""
    by_hand: str
    """How to get it without ``fetch``."""
    url: str | None = None
    """Where the archive is downloaded from; None if that is done by hand."""
    archive: str | None = None
    """File name of the archive; None where the set is not one archive."""
    sha256: str | None = None


_SETS = (
    PublicSet(
        name="mvtec_ad",
        title="MVTec AD: 15 objects and textures",
        homepage="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        licence="CC BY-NC-SA 4.0",
        citation="Bergmann, Batzner, Fauser, Sattlegger, Steger: The MVTec Anomaly Detection "
        "Dataset. IJCV 129, 2021. doi:10.1007/s11263-020-01400-4",
        layout="mvtec",
        # No address: the share links change.
        archive="mvtec_anomaly_detection.tar.xz",
        # anomalib, data/datamodules/image/mvtec_ad.py
        sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
        by_hand="Download the whole dataset (5.3 GB) from the home page.",
    ),
    PublicSet(
        name="mvtec_loco",
        title="MVTec LOCO AD: 5 products with structural and logical anomalies",
        homepage="https://www.mvtec.com/company/research/datasets/mvtec-loco",
        licence="CC BY-NC-SA 4.0",
        citation="Bergmann, Batzner, Fauser, Sattlegger, Steger: Beyond Dents and Scratches. "
        "IJCV 130, 2022. doi:10.1007/s11263-022-01578-9",
        layout="loco",
        # No address: the share links change.
        archive="mvtec_loco_anomaly_detection.tar.xz",
        # anomalib, data/datasets/image/mvtec_loco.py
        sha256="9e7c84dba550fd2e59d8e9e231c929c45ba737b6b6a6d3814100f54d63aae687",
        by_hand="Download the whole dataset (6.1 GB) from the home page.",
    ),
    PublicSet(
        name="visa",
        title="VisA: 12 objects",
        homepage="https://github.com/amazon-science/spot-diff",
        licence="CC BY 4.0",
        citation="Zou, Jeong, Pemula, Zhang, Dabeer: SPot-the-Difference Self-Supervised "
        "Pre-training for Anomaly Detection and Segmentation. ECCV 2022. arXiv:2207.14315",
        layout="visa",
        # Address: registry.opendata.aws, datasets/visa.yaml. Checksum: anomalib,
        # data/datamodules/image/visa.py.
        url="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
        archive="VisA_20220922.tar",
        sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
        by_hand="Download VisA_20220922.tar (1.9 GB) from the address on the home page.",
    ),
    PublicSet(
        name="btad",
        title="BTAD: 3 industrial products",
        homepage="https://github.com/pankajmishra000/VT-ADL",
        licence="CC BY-SA 4.0",
        citation="Mishra, Verk, Fornasier, Piciarelli, Foresti: VT-ADL: A Vision Transformer "
        "Network for Image Anomaly Detection and Localization. ISIE 2021",
        layout="btad",
        # Address: the home page. Checksum: anomalib, data/datamodules/image/btech.py.
        url="https://avires.dimi.uniud.it/papers/btad/btad.zip",
        archive="btad.zip",
        sha256="461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
        by_hand="Download btad.zip from the address on the home page.",
    ),
    PublicSet(
        name="mpdd",
        title="MPDD: 6 kinds of painted metal parts",
        homepage="https://github.com/stepanje/MPDD",
        licence="not stated; ask the authors",
        citation="Jezek, Jonak, Burget, Dvorak, Skotak: Deep learning-based defect detection of "
        "metal parts. ICUMT 2021. doi:10.1109/ICUMT54235.2021.9631567",
        layout="mvtec",
        by_hand="Follow the download link on the home page, and unpack what it gives.",
    ),
    PublicSet(
        name="kolektorsdd",
        title="KolektorSDD: cracks on commutators",
        homepage="https://www.vicos.si/resources/kolektorsdd/",
        licence="CC BY-NC-SA 4.0",
        citation="Tabernik, Sela, Skvarc, Skocaj: Segmentation-based deep-learning approach for "
        "surface-defect detection. Journal of Intelligent Manufacturing 31, 2020. "
        "doi:10.1007/s10845-019-01476-x",
        layout="kolektorsdd",
        # The home page's go.vicos.si/kolektorsdd leads to this address. Checksum: anomalib,
        # data/datamodules/image/kolektor.py.
        url="https://data.vicos.si/datasets/KSDD/KolektorSDD.zip",
        archive="KolektorSDD.zip",
        sha256="65dc621693418585de9c4467d1340ea7958a6181816f0dc2883a1e8b61f9d4dc",
        by_hand="Download the archive with fine annotations from the home page.",
    ),
    PublicSet(
        name="kolektorsdd2",
        title="KolektorSDD2: surfaces of production items",
        homepage="https://www.vicos.si/resources/kolektorsdd2/",
        licence="CC BY-NC-SA 4.0",
        citation="Bozic, Tabernik, Skocaj: Mixed supervision for surface-defect detection: from "
        "weakly to fully supervised learning. Computers in Industry 129, 2021. "
        "doi:10.1016/j.compind.2021.103459",
        layout="kolektorsdd2",
        # The home page's go.vicos.si/kolektorsdd2 leads to this address. Checksum: several
        # independent repositories record it with the size of 853,126,555 bytes.
        url="https://data.vicos.si/datasets/KSDD/KolektorSDD2.zip",
        archive="KolektorSDD2.zip",
        sha256="edcdb486809b24f1d17b785e30c52fafc5999554dd5fe18ddf77b61ceb6f36a8",
        by_hand="Download the archive (850 MB) from the home page.",
    ),
    PublicSet(
        name="magnetic_tile",
        title="Magnetic Tile: 5 kinds of defects",
        homepage="https://github.com/abin24/Magnetic-tile-defect-datasets.",
        licence="no formal licence: use welcome, cite",
        citation="Huang, Qiu, Yuan: Surface defect saliency of magnetic tile. The Visual "
        "Computer 36, 2020. doi:10.1007/s00371-018-1588-5",
        layout="magnetic_tile",
        # A Git repository: its archives have no lasting checksum.
        by_hand="git clone https://github.com/abin24/Magnetic-tile-defect-datasets. magnetic_tile",
    ),
)

PUBLIC_SETS = {each.name: each for each in _SETS}
"""By name."""
