"""Small causal networks that follow the structure of public code which knows nothing of fastgen.

``NETWORKS[name]()`` gives ``(module, event_shape, head, order, predicts, adapter[, context])``; the module is in eval
mode and its weights are seeded. ``order`` is a name, the flat elements in their order, or a rule.
"""

from __future__ import annotations

from tests.generate import public_attention as attention
from tests.generate import public_audio as audio
from tests.generate import public_captured as captured
from tests.generate import public_groups as groups
from tests.generate import public_image_loops as image_loops
from tests.generate import public_images as images
from tests.generate import public_recurrent as recurrent
from tests.generate import public_sequences as sequences
from tests.generate import public_translation as translation
from tests.generate import public_videos as videos

NETWORKS = {
    make.__name__: make
    for make in (
        images.pixelcnn_pp_port,
        images.pixelcnn_pp_port_grey,
        images.masked_stack,
        images.pixel_shuffle,
        images.made,
        images.made_permuted,
        images.video,
        sequences.wavenet_one_hot,
        sequences.wavenet_batch_folded,
        sequences.tokens_last,
        sequences.temporal_conv_net,
        sequences.causal_unet,
        sequences.bytenet,
        recurrent.char_lstm,
        recurrent.lstm_given_states,
        recurrent.gru_sequence_first,
        recurrent.relu_rnn,
        recurrent.cells,
        recurrent.own_cell,
        recurrent.sequence_first_loop,
        recurrent.averages,
        recurrent.cumulative_norm,
        recurrent.linear_attention,
        recurrent.retention,
        recurrent.rwkv,
        recurrent.mamba,
        recurrent.row_lstm,
        image_loops.conv_lstm,
        image_loops.diagonal_lstm,
        image_loops.columns_gru,
        audio.wavernn,
        audio.wavernn_mels,
        audio.samplernn,
        attention.gpt,
        attention.llama,
        attention.transformer_xl,
        attention.sparse_transformer,
        attention.retnet,
        attention.translator,
        translation.t5,
        attention.pixelsnail,
        attention.image_gpt,
        attention.image_transformer,
        groups.multiscale_pixelcnn,
        groups.wavefront,
        groups.scrambled,
        groups.codebooks_parallel,
        groups.codebooks_delayed,
        videos.pixelcnn_3d,
        videos.video_stacks,
        videos.video_pixel_network,
        videos.video_strides,
        videos.video_subpixels,
        videos.video_transformer,
        captured.flex_decoder,
        captured.associative_state_space,
    )
}
