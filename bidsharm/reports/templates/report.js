// Extras on top of a page that works without scripts: wiping between two images, press and hold, and where a wide image starts.
document.documentElement.classList.add('js');
// On a narrow screen the middle slices come first.
for (const stage of document.querySelectorAll('.stage'))
  stage.scrollLeft = (stage.scrollWidth - stage.clientWidth) / 2;
for (const viewer of document.querySelectorAll('.viewer')) {
  const layers = viewer.querySelector('.layers');
  const slider = viewer.querySelector('input[type=range]');
  if (slider) {
    const wipe = () => layers.style.setProperty('--wipe', slider.value + '%');
    slider.addEventListener('input', wipe);
    wipe();
  }
  layers.addEventListener('pointerdown', () => layers.classList.add('held'));
  for (const end of ['pointerup', 'pointerleave', 'pointercancel'])
    layers.addEventListener(end, () => layers.classList.remove('held'));
}
